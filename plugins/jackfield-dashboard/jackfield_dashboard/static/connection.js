// The stream of news, which is opened again and again: servers end, networks go away, laptops sleep.

import { ask, events, hasKey } from "./api.js";

const SILENCE = 10000; // news come every second, so nothing for so long means that nobody is there
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;

export class Connection {
  // heard(name, data) gets what comes; told(state, why) hears how the connection is.
  constructor(heard, told) {
    this.heard = heard;
    this.told = told;
    this.wake = () => {};
    this.aborting = null;
    this.anew = false;
    this.refused = false;
    window.addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  // Begin again at once, with another key.
  restart() {
    this.anew = true;
    this.aborting?.abort();
    this.wake();
  }

  // Another attempt may be worth it now; without another key it is not.
  hurry() {
    if (!this.refused) this.wake();
  }

  async run() {
    for (let pause = FIRST_PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      const failure = await this.listen(() => (pause = FIRST_PAUSE)).catch((error) => error);
      this.refused = failure?.status === 401 || failure?.status === 403;
      if (!this.anew) {
        this.told(...state(failure));
        await this.sleep(this.refused ? Infinity : pause);
      }
      this.anew = false;
    }
  }

  async listen(alive) {
    const aborting = (this.aborting = new AbortController());
    let silence = setTimeout(() => aborting.abort(), SILENCE);
    try {
      for await (const { name, data } of events(await ask("dashboard/events", { signal: aborting.signal }))) {
        clearTimeout(silence);
        silence = setTimeout(() => aborting.abort(), SILENCE);
        if (!data) continue;
        alive();
        this.told("live");
        this.heard(name, JSON.parse(data));
      }
    } finally {
      clearTimeout(silence);
    }
  }

  // Until the time is over, or somebody wakes it.
  sleep(milliseconds) {
    return new Promise((resolve) => {
      this.wake = resolve;
      if (Number.isFinite(milliseconds)) setTimeout(resolve, milliseconds);
    });
  }
}

function state(failure) {
  const { status, message } = failure ?? {};
  if (status === 401) return ["key", hasKey() ? "The server does not know this key." : "The server asks for a key."];
  if (status === 403) return ["key", "This key may not look at the server: that takes the scope admin."];
  return status ? ["lost", message] : ["lost"];
}
