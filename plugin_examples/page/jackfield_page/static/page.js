// Relative to this page, so that it works behind a proxy with a prefix, too.
const API = new URL("../v1/", document.baseURI);

const part = (id) => document.getElementById(id);
const messages = [];
let running = null;

function headers() {
  const key = part("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function ask(path, options = {}) {
  const response = await fetch(new URL(path, API), { ...options, headers: headers() });
  if (response.ok) return response;
  const { error } = await response.json();
  throw new Error([error.message, ...(error.suggestions ?? [])].join(" "));
}

async function listModels() {
  const { data } = await (await ask("models")).json();
  part("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
}

function tell(text, wrong = false) {
  part("status").textContent = text;
  part("status").classList.toggle("wrong", wrong);
}

function show(role, text) {
  const article = document.createElement("article");
  const heading = document.createElement("h2");
  const paragraph = document.createElement("p");
  article.className = role;
  heading.textContent = role === "user" ? "You" : "Model";
  paragraph.textContent = text;
  article.append(heading, paragraph);
  part("conversation").append(article);
  article.scrollIntoView({ block: "end" });
  return paragraph;
}

// The data of server-sent events, one JSON object each.
async function* events(response) {
  // Not every browser iterates over streams.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const lines = (held + read.value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function answer(paragraph) {
  const body = JSON.stringify({ model: part("model").value, messages, stream: true });
  const response = await ask("chat/completions", { method: "POST", body, signal: running.signal });
  for await (const { choices, error } of events(response)) {
    if (error) throw new Error(error.message);
    paragraph.textContent += choices[0]?.delta.content ?? "";
    paragraph.scrollIntoView({ block: "end" });
  }
}

async function send() {
  const text = part("prompt").value.trim();
  if (!text || running) return;
  if (!part("model").value) await listModels();
  messages.push({ role: "user", content: text });
  show("user", text);
  part("prompt").value = "";
  begin();
  const paragraph = show("assistant", "");
  try {
    await answer(paragraph);
    tell("");
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  }
  if (paragraph.textContent) messages.push({ role: "assistant", content: paragraph.textContent });
  else forget(paragraph, text);
  end();
}

// Without an answer, the message goes back to where it can be sent again.
function forget(paragraph, text) {
  messages.pop();
  paragraph.parentElement.previousElementSibling.remove();
  paragraph.parentElement.remove();
  part("prompt").value ||= text;
}

function begin() {
  running = new AbortController();
  part("conversation").setAttribute("aria-busy", "true"); // read out when it is whole, not word by word
  part("send").disabled = true;
  part("stop").disabled = false;
  tell("The model answers.");
}

function end() {
  running = null;
  part("conversation").setAttribute("aria-busy", "false");
  part("send").disabled = false;
  part("stop").disabled = true;
  part("prompt").focus();
}

const report = (error) => tell(error.message, true);

part("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send().catch(report);
});
part("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  part("form").requestSubmit(part("send"));
});
part("stop").addEventListener("click", () => running?.abort());
part("key").addEventListener("change", () => listModels().then(() => tell(""), report));

listModels().catch(report);
