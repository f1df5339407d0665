// A small conversation with a model, kept in this page's memory alone.

import { ask, events } from "./api.js";
import { h, part, write } from "./dom.js";
import { plural, rate, score, seconds } from "./format.js";
import { bar } from "./requests.js";

// Why an answer is not whole, in the words of `ended_by`.
const ENDS = {
  length: "cut at max. tokens",
  tool_call: "wants to call a tool",
  timeout: "cut: its time was over",
  error: "broken off: the engine failed",
  shutdown: "broken off: the server ended",
};

export class Chat {
  constructor() {
    this.messages = [];
    this.running = null;
    part("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    part("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    part("stop").addEventListener("click", () => this.running?.abort());
    part("clear").addEventListener("click", () => this.clear());
    this.greet();
  }

  // What can be chosen; the choice stays, as long as it is there.
  offer(models) {
    const select = part("chat-model");
    const ids = models.map(({ id }) => id);
    if (ids.join("\n") === [...select.options].map(({ value }) => value).join("\n")) return;
    const chosen = select.value;
    select.replaceChildren(...ids.map((id) => new Option(id, id)));
    if (ids.includes(chosen)) select.value = chosen;
  }

  greet() {
    part("conversation").replaceChildren(h("p", { class: "empty" }, "Nothing said yet. What you write stays in this page."));
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    this.greet();
    this.tell("");
    part("prompt").focus();
  }

  tell(text, wrong = false) {
    write(part("chat-status"), text);
    part("chat-status").classList.toggle("wrong", wrong);
  }

  async send() {
    const text = part("prompt").value.trim();
    if (!text || this.running) return;
    if (!this.valid()) return;
    if (!this.messages.length) part("conversation").replaceChildren();
    const asked = turn("user", text);
    const answer = new Answer();
    this.messages.push({ role: "user", content: text });
    part("conversation").append(asked, answer.element);
    part("prompt").value = "";
    this.begin();
    const conversation = this.messages;
    try {
      await answer.read(await ask("v1/chat/completions", { body: this.body(), signal: this.running.signal }));
      this.tell("");
    } catch (error) {
      const stopped = error.name === "AbortError";
      answer.end(stopped ? "stopped" : "broken off");
      this.tell(stopped ? "Stopped." : error.message, !stopped);
    }
    this.end();
    if (conversation !== this.messages) return; // it has been cleared
    if (answer.text) this.messages.push({ role: "assistant", content: answer.text });
    else if (!answer.thoughts) this.takeBack(asked, answer, text);
  }

  valid() {
    return ["max-tokens", "temperature"].every((id) => part(id).reportValidity());
  }

  body() {
    const [most, temperature] = [part("max-tokens").value, part("temperature").value];
    return {
      model: part("chat-model").value,
      messages: this.messages,
      stream: true,
      stream_options: { include_usage: true },
      jackfield: true,
      ...(most && { max_tokens: Number(most) }),
      ...(temperature && { temperature: Number(temperature) }),
    };
  }

  // Without an answer, the message goes back to where it can be sent again.
  takeBack(asked, answer, text) {
    this.messages.pop();
    asked.remove();
    answer.element.remove();
    if (!this.messages.length) this.greet();
    part("prompt").value ||= text;
  }

  begin() {
    this.running = new AbortController();
    part("conversation").setAttribute("aria-busy", "true"); // read out when it is whole, not word by word
    part("send").disabled = true;
    part("stop").disabled = false;
    this.tell("The model answers.");
  }

  end() {
    const focused = document.activeElement === part("stop") || document.activeElement === document.body;
    this.running = null;
    part("conversation").setAttribute("aria-busy", "false");
    part("send").disabled = false;
    part("stop").disabled = true;
    if (focused) part("prompt").focus();
  }
}

// An answer as it comes, and then what there is to say about it.
class Answer {
  constructor() {
    this.text = "";
    this.thoughts = "";
    this.asked = performance.now();
    this.first = null;
    this.said = {};
    this.paragraph = h("p", { class: "text" });
    this.thinking = h("p", { class: "text" });
    this.details = h("details", { class: "thoughts", hidden: true }, h("summary", {}, "Thoughts"), this.thinking);
    this.facts = h("p", { class: "facts" });
    this.element = turn("assistant", null, this.details, this.paragraph, this.facts);
    this.waiting = 0;
  }

  async read(response) {
    for await (const { data } of events(response)) {
      if (data === "[DONE]" || !data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      this.take(chunk);
    }
    this.end();
  }

  take({ choices, usage, jackfield }) {
    const [choice] = choices ?? [];
    const { content, reasoning_content: thought } = choice?.delta ?? {};
    if (content || thought) this.first ??= performance.now();
    this.text += content ?? "";
    this.thoughts += thought ?? "";
    if (choice?.finish_reason) this.said.finish = choice.finish_reason;
    if (usage) this.said.tokens = usage.completion_tokens;
    if (jackfield) this.said.report = jackfield.choices[0];
    this.waiting ||= requestAnimationFrame(() => this.show());
  }

  show() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    const log = part("conversation");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    this.details.hidden = !this.thoughts;
    write(this.thinking, this.thoughts);
    write(this.paragraph, this.text);
    if (follows) log.scrollTop = log.scrollHeight;
  }

  end(how = "") {
    const { finish, tokens, report } = this.said;
    const took = report?.decode_seconds || (performance.now() - (this.first ?? this.asked)) / 1000;
    const facts = [
      how || ENDS[report?.ended_by ?? finish],
      tokens && plural(tokens, "token"),
      tokens > 1 && took > 0 && rate(tokens / took),
      this.first && `first after ${seconds((this.first - this.asked) / 1000)}`,
    ];
    this.facts.textContent = facts.filter(Boolean).join(" · ");
    for (const [plugin, said] of Object.entries(report?.confidence ?? {})) {
      this.facts.append(" · ", h("span", { class: "trust" }, bar(said.score), `${plugin} ${score(said.score)}, ${said.label}`));
    }
    this.show();
  }
}

function turn(role, text, ...parts) {
  const name = h("h3", { class: "who" }, role === "user" ? "You" : "Model");
  return h("article", { class: `turn ${role}` }, name, ...(parts.length ? parts : [h("p", { class: "text" }, text)]));
}
