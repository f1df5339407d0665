// The server's API, as this page asks it. The key stays in this tab, and never gets into an address.

// Relative to this page, so that it works behind a proxy with a prefix, too.
const ROOT = new URL("../", document.baseURI);
const STORED = "jackfield.key";

let key = "";
try {
  key = sessionStorage.getItem(STORED) ?? "";
} catch {
  // Where nothing may be stored, the key lives as long as the page.
}

export const hasKey = () => key !== "";

export function useKey(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem(STORED, value);
    else sessionStorage.removeItem(STORED);
  } catch {
    // As above.
  }
}

// The server has answered, but not with what was asked for.
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, { body, signal } = {}) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const method = body ? "POST" : "GET";
  const sent = body && JSON.stringify(body);
  const asking = fetch(new URL(path, ROOT), { method, headers, body: sent, signal, cache: "no-store" });
  const response = await asking.catch(because("The server cannot be reached."));
  if (response.ok) return response;
  throw new Refusal(response.status, await explanation(response));
}

// Browsers say little of networks that fail, and each says it in its own way.
const because = (message) => (error) => {
  throw error instanceof TypeError ? new Error(message, { cause: error }) : error;
};

async function explanation(response) {
  try {
    const { error } = await response.json();
    return [error.message, ...(error.suggestions ?? [])].join(" ");
  } catch {
    return `The server answered ${response.status}.`;
  }
}

// Server-sent events, as objects with their name and their data.
export async function* events(response) {
  // Not every browser iterates over streams.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  const next = () => reader.read().catch(because("The connection to the server was lost."));
  for (let read = await next(); !read.done; read = await next()) {
    const blocks = (held + read.value).split(/\r?\n\r?\n/);
    held = blocks.pop();
    for (const block of blocks) yield event(block);
  }
}

function event(block) {
  const found = { name: "message", data: "" };
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) found.name = line.slice(6).trim();
    if (line.startsWith("data:")) found.data += line.slice(5).replace(/^ /, "");
  }
  return found;
}
