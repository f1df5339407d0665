// Puts the page together: what comes from the server goes into one state, and all parts show that.

import { hasKey, useKey } from "./api.js";
import { Cards } from "./cards.js";
import { Chat } from "./chat.js";
import { Connection } from "./connection.js";
import { choices, part, set, write } from "./dom.js";
import { Requests } from "./requests.js";
import { models, plugins } from "./tables.js";

const SPANS = [1, 5, 15, 60];
const STATES = {
  connecting: "Connecting …",
  live: "Live",
  paused: "Paused",
  lost: "Not connected, trying again …",
  key: "API key needed",
};

const state = { samples: [], requests: new Map(), models: [], plugins: [], latency: null, time: 0, keeps: null };
let span = 60 * 5;
let scheduled = 0;
let paused = false;
let connected = "connecting";

const cards = new Cards(part("cards"));
const requests = new Requests(show);
const modelTable = models();
const pluginTable = plugins();
const chat = new Chat();

// --- What comes ---------------------------------------------------------------------------------------------------

function heard(name, told) {
  if (name === "whole") {
    state.samples = [];
    state.requests.clear();
    keep(told.keeps);
  }
  state.samples.push(...told.history);
  while (state.samples[0].at < state.samples.at(-1).at - 60 * state.keeps.minutes) state.samples.shift();
  for (const one of told.requests) state.requests.set(one.number, one);
  forget();
  Object.assign(state, { models: told.models, plugins: told.plugins, latency: told.latency, time: told.time });
  if (!paused) schedule();
}

function keep(keeps) {
  const first = !state.keeps;
  state.keeps = keeps;
  if (!first) return;
  const minutes = [...new Set([...SPANS.filter((one) => one < keeps.minutes), keeps.minutes])];
  span = 60 * Math.min(5, keeps.minutes);
  choices(part("span"), "span", minutes.map((one) => [String(60 * one), `${one} min`]), String(span), (value) => {
    span = Number(value);
    show();
  });
}

function forget() {
  const oldest = [...state.requests.keys()].sort((a, b) => a - b).slice(0, -state.keeps.requests);
  for (const number of oldest) state.requests.delete(number);
}

// Once a frame at most, and not at all while nobody can see it.
function schedule() {
  scheduled ||= requestAnimationFrame(show);
}

function show() {
  cancelAnimationFrame(scheduled);
  scheduled = 0;
  if (!state.latency) return;
  cards.show(state, span);
  requests.show(state);
  modelTable.show(state.models);
  part("no-models").hidden = state.models.length > 0;
  pluginTable.show(state.plugins);
  chat.offer(state.models);
}

// --- How the connection is ----------------------------------------------------------------------------------------

function told(how, why = "") {
  const changed = how !== connected || why;
  connected = how;
  if (changed) tellConnection(why);
  if (how === "key") askForKey(why);
}

function tellConnection(why = "") {
  const shown = connected === "live" && paused ? "paused" : connected;
  set(part("connection"), "data-state", shown);
  write(part("connection"), shown === "lost" && why ? `${why} Trying again …` : STATES[shown]);
  part("main").classList.toggle("stale", shown !== "live" && shown !== "paused");
}

const connection = new Connection(heard, told);

// --- The key ------------------------------------------------------------------------------------------------------

function askForKey(why) {
  write(part("key-why"), why);
  part("key-forget").hidden = !hasKey();
  if (!part("key-dialog").open) part("key-dialog").showModal();
}

part("key-button").addEventListener("click", () =>
  askForKey(hasKey() ? "This page uses a key." : "Enter one, where the server asks for it."),
);
part("key-cancel").addEventListener("click", () => part("key-dialog").close());
part("key-forget").addEventListener("click", () => take(""));
part("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (part("key").value) take(part("key").value.trim());
});

function take(key) {
  useKey(key);
  part("key").value = "";
  part("key-dialog").close();
  connection.restart();
}

// --- Tools --------------------------------------------------------------------------------------------------------

part("pause").addEventListener("click", () => {
  paused = !paused;
  set(part("pause"), "aria-pressed", String(paused));
  tellConnection();
  if (!paused) show();
});

part("theme").value = document.documentElement.dataset.theme ?? "";
part("theme").addEventListener("change", ({ target: { value } }) => {
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("jackfield.theme", value);
  } catch {
    // Where nothing may be stored, it holds as long as the page.
  }
});

connection.run();
