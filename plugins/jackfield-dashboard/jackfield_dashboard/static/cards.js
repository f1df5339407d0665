// The cards at the top: what is going on now in one figure each, and how it came to that.

import { Chart } from "./chart.js";
import { h, write } from "./dom.js";
import { bytes, compact, count, percent, plural, rate, seconds } from "./format.js";

const PRESSURES = {
  none: "there is enough",
  evicting: "short: the prefix cache gives way",
  slowing: "short: requests wait",
  refusing: "short: requests are refused",
};

const over = (samples, read) => samples.map((sample) => [sample.at, read(sample)]);

const ended = (requests, name) =>
  requests.filter((one) => one.ended !== null && one[name] !== null).map((one) => [one.ended, one[name]]);

const total = (tiers) => Object.values(tiers).reduce((sum, value) => sum + value, 0);

// The share of prompt tokens that the prefix cache had, of those that came since the first sample.
function hits(samples) {
  const [first, last] = [samples[0], samples.at(-1)];
  const read = last.prompt_tokens - first.prompt_tokens;
  return read > 0 ? (total(last.cached_tokens) - total(first.cached_tokens)) / read : null;
}

// Each tells its figure, what is said below it, and the points of its series, from what is seen in the time chosen.
const CARDS = [
  {
    id: "load",
    title: "Requests",
    series: [{ label: "Running" }, { label: "Waiting" }, { label: "Reading" }],
    format: count,
    floor: 4,
    figure: ({ last }) => [count(last.running), "running"],
    notes: ({ last }) => [`${count(last.waiting)} waiting`, `${count(last.reading)} reading their prompts`],
    points: ({ samples }) => ["running", "waiting", "reading"].map((name) => over(samples, (sample) => sample[name])),
  },
  {
    id: "speed",
    title: "Tokens per second",
    series: [{ label: "Generated" }],
    format: rate,
    floor: 10,
    figure: ({ last }) => [rate(last.tokens_per_second), ""],
    notes: ({ samples, last }) => [
      `highest ${rate(Math.max(...samples.map((sample) => sample.tokens_per_second)))}`,
      `${compact(last.generated_tokens)} since the start`,
    ],
    points: ({ samples }) => [over(samples, (sample) => sample.tokens_per_second)],
  },
  {
    id: "first-token",
    title: "Time to first token",
    series: [{ label: "Answers", dots: true }],
    format: seconds,
    floor: 0.1,
    figure: ({ latency }) => [seconds(latency.first_token.p50), "median"],
    notes: ({ latency }) => [`95 % within ${seconds(latency.first_token.p95)}`, plural(latency.first_token.count, "answer")],
    points: ({ requests }) => [ended(requests, "first_token_seconds")],
  },
  {
    id: "between-tokens",
    title: "Time between tokens",
    series: [{ label: "Average of each answer", dots: true }],
    format: seconds,
    floor: 0.01,
    figure: ({ latency }) => [seconds(latency.between_tokens.p50), "median"],
    notes: ({ latency }) => [
      `95 % within ${seconds(latency.between_tokens.p95)}`,
      plural(latency.between_tokens.count, "answer"),
    ],
    points: ({ requests }) => [ended(requests, "between_tokens_seconds")],
  },
  {
    id: "memory",
    title: "Memory",
    series: [{ label: "Device, in all" }, { label: "Keys and values" }],
    format: bytes,
    floor: 1e6,
    figure: ({ last }) => [bytes(last.device_bytes), "on the device"],
    notes: ({ last }) => [`${bytes(last.kv_bytes)} keys and values`, PRESSURES[last.pressure] ?? last.pressure],
    points: ({ samples }) => ["device_bytes", "kv_bytes"].map((name) => over(samples, (sample) => sample[name])),
  },
  {
    id: "cache",
    title: "Prefix cache",
    series: [{ label: "In memory" }, { label: "On disk" }],
    format: bytes,
    floor: 1e6,
    figure: ({ samples }) => [percent(hits(samples)), "of prompts cached"],
    notes: ({ last }) => [`${bytes(last.cache_bytes.memory ?? 0)} in memory`, `${bytes(last.cache_bytes.disk ?? 0)} on disk`],
    points: ({ samples }) => ["memory", "disk"].map((tier) => over(samples, (sample) => sample.cache_bytes[tier] ?? 0)),
  },
];

class Card {
  constructor(what) {
    this.what = what;
    this.chart = new Chart(what.title, what.series, what.format, what.floor);
    this.value = h("span", { class: "value" });
    this.unit = h("span", { class: "unit" });
    this.notes = [h("span"), h("span")];
    const title = h("h3", { id: `${what.id}-title` }, what.title);
    const figure = h("p", { class: "figure" }, this.value, " ", this.unit);
    const notes = h("p", { class: "notes" }, this.notes[0], " ", this.notes[1]);
    const attributes = { class: "panel card", id: what.id, "aria-labelledby": title.id };
    this.element = h("section", attributes, title, figure, notes, this.chart.element);
  }

  show(seen) {
    const [value, unit] = this.what.figure(seen);
    write(this.value, value);
    write(this.unit, unit);
    this.what.notes(seen).forEach((text, index) => write(this.notes[index], text));
    this.element.classList.toggle("alarm", this.what.id === "memory" && seen.last.pressure !== "none");
    this.chart.show(this.what.points(seen), seen.last.at, seen.time, seen.span);
  }
}

export class Cards {
  constructor(host) {
    this.cards = CARDS.map((what) => new Card(what));
    host.append(...this.cards.map((card) => card.element));
  }

  show(state, span) {
    const last = state.samples.at(-1);
    if (!last) return;
    const samples = state.samples.filter((sample) => sample.at >= last.at - span);
    const requests = [...state.requests.values()].sort((a, b) => a.ended - b.ended);
    const seen = { samples, last, requests, latency: state.latency, time: state.time, span };
    for (const card of this.cards) card.show(seen);
  }
}
