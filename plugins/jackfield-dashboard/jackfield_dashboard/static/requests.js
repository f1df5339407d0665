// The last requests, the newest first.

import { choices, h, part, set, write } from "./dom.js";
import { NOTHING, compact, rate, score, seconds, time } from "./format.js";

const PAGE = 25;

const STATES = {
  waiting: "Waiting",
  answering: "Answering",
  completed: "Done",
  failed: "Failed",
  cancelled: "Hung up",
};

const FILTERS = [
  ["all", "All", () => true],
  ["working", "At work", (one) => one.ended === null],
  ["failed", "Failed", (one) => one.state === "failed"],
  ["slow", "Slow", (one) => one.slow],
];

const NONE = {
  all: "No requests yet. Ask the model something in the chat, or point a client at this server.",
  working: "No request is being worked on.",
  failed: "No request has failed.",
  slow: "No first token was slow.",
};

export class Requests {
  constructor(changed) {
    this.body = part("request-table").tBodies[0];
    this.rows = new Map();
    this.filter = "all";
    this.most = PAGE;
    this.labels = choices(part("filter"), "filter", FILTERS.map(([value, text]) => [value, text]), "all", (value) => {
      this.filter = value;
      this.most = PAGE;
      changed();
    });
    part("more").addEventListener("click", () => {
      this.most += PAGE;
      changed();
    });
  }

  show({ requests, time: now }) {
    const all = [...requests.values()].sort((a, b) => b.number - a.number);
    for (const [value, text, passes] of FILTERS) {
      const found = all.filter(passes).length;
      write(this.labels.get(value), value === "all" ? text : `${text} ${found}`);
    }
    const [, , passes] = FILTERS.find(([value]) => value === this.filter);
    const wanted = all.filter(passes);
    this.list(wanted.slice(0, this.most), now);
    part("more").hidden = wanted.length <= this.most;
    part("no-requests").hidden = wanted.length > 0;
    part("request-table").hidden = wanted.length === 0;
    write(part("no-requests"), NONE[this.filter]);
  }

  // Rows stay in their place when they stay, so that what is read or selected is not taken away.
  list(wanted, now) {
    const numbers = new Set(wanted.map(({ number }) => number));
    for (const [number, row] of this.rows) {
      if (numbers.has(number)) continue;
      row.remove();
      this.rows.delete(number);
    }
    wanted.forEach((one, index) => {
      if (!this.rows.has(one.number)) this.rows.set(one.number, row());
      const found = this.rows.get(one.number);
      if (this.body.rows[index] !== found) this.body.insertBefore(found, this.body.rows[index] ?? null);
      fill(found, one, now);
    });
  }
}

const COLUMNS = ["", "result", "", "number", "number", "number", "number", "", ""];
const WITH_MORE = [1, 2, 3, 4]; // cells with a second line, in small

function row() {
  const made = h("tr", {}, ...COLUMNS.map((kind) => h("td", { class: kind })));
  for (const index of WITH_MORE) made.cells[index].append(h("span"), " ", h("span", { class: "small" }));
  made.cells[0].append(h("time"));
  made.cells[2].replaceChildren(h("bdi", { class: "name" }), " ", h("span", { class: "small" }));
  made.cells[8].append(h("code"));
  return made;
}

function fill(made, one, now) {
  const [when, state, what, prompt, answer, first, total, confidence, id] = made.cells;
  write(when.firstChild, time(one.time));
  set(when.firstChild, "datetime", new Date(1000 * one.time).toISOString());
  both(state, STATES[one.state], one.state === "failed" ? failure(one) : one.finish.join(", "));
  set(state.firstChild, "class", `state ${one.state}`);
  both(what, one.model || NOTHING, [one.endpoint, one.sender].filter(Boolean).join(", "));
  both(prompt, compact(one.prompt_tokens), one.cached_tokens ? `${compact(one.cached_tokens)} cached` : "");
  both(answer, compact(one.completion_tokens), one.tokens_per_second ? rate(one.tokens_per_second) : "");
  write(first, seconds(one.first_token_seconds));
  set(first, "class", one.slow ? "number slow" : "number");
  write(total, seconds(one.ended === null ? Math.max(0, now - one.time) : one.seconds));
  trust(confidence, Object.entries(one.confidence));
  write(id.firstChild, one.id);
}

function both(cell, text, more) {
  write(cell.firstChild, text);
  write(cell.lastChild, more);
}

const failure = ({ status, code, type }) => [status, code ?? type].filter(Boolean).join(" ");

function trust(cell, scores) {
  if (!scores.length) return write(cell, NOTHING);
  const text = scores.map(([plugin, said]) => (scores.length > 1 ? `${plugin} ` : "") + `${score(said.score)} ${said.label}`);
  if (cell.textContent !== text.join(", ")) cell.replaceChildren(bar(scores[0][1].score), h("span", {}, text.join(", ")));
}

// How far an answer is trusted, for the eye.
export function bar(value) {
  const made = h("span", { class: "bar", "aria-hidden": "true" });
  made.style.setProperty("--score", String(value));
  return made;
}

