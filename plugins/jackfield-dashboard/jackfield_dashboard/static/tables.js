// Models and plugins.

import { h, part, set, write } from "./dom.js";
import { NOTHING, compact, count, seconds } from "./format.js";

class Table {
  // columns: the text of each cell, its kind, and what to add in small; state says which sign is before the text.
  constructor(id, columns) {
    this.body = part(id).tBodies[0];
    this.columns = columns;
  }

  show(objects) {
    while (this.body.rows.length > objects.length) this.body.rows[objects.length].remove();
    while (this.body.rows.length < objects.length) this.body.append(this.row());
    objects.forEach((one, i) => this.columns.forEach((column, j) => fill(this.body.rows[i].cells[j], column, one)));
  }

  row() {
    return h("tr", {}, ...this.columns.map(({ kind }, index) => h(index ? "td" : "th", index ? { class: kind } : { scope: "row" })));
  }
}

function fill(cell, { text, state, small }, one) {
  if (!state && !small) return write(cell, text(one));
  if (!cell.firstChild) cell.append(h("span", { class: state ? "state" : "name" }), " ", h("span", { class: "small" }));
  write(cell.firstChild, text(one));
  if (state) set(cell.firstChild, "class", `state ${state(one)}`);
  write(cell.lastChild, small ? small(one) : "");
  return undefined;
}

const number = "number";

export const models = () =>
  new Table("model-table", [
    { text: (one) => one.id },
    { text: (one) => one.state, state: (one) => one.state },
    { kind: number, text: (one) => (one.context_length ? `${count(one.context_length)} tokens` : NOTHING) },
    { kind: number, text: (one) => count(one.running) },
    { kind: number, text: (one) => count(one.waiting) },
    { kind: number, text: (one) => `${compact(one.generated_tokens)} tokens` },
    { kind: number, text: (one) => count(one.restarts) },
  ]);

export const plugins = () =>
  new Table("plugin-table", [
    { text: (one) => one.name, small: (one) => one.version },
    { text: (one) => one.state, state: (one) => one.state },
    { kind: number, text: (one) => compact(one.calls) },
    { kind: number, text: (one) => compact(one.failures) },
    { kind: number, text: (one) => (one.calls ? seconds(one.seconds / one.calls) : NOTHING) },
    { kind: number, text: (one) => seconds(one.seconds) },
    { kind: "error", text: (one) => one.errors.at(-1) ?? NOTHING },
  ]);
