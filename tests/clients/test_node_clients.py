"""The libraries for Node."""

import pytest
from asked import Asked
from desk import Desk
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)
MESSAGES = Asked("POST", "/v1/messages", 200)
each_ai_sdk = pytest.mark.parametrize(
    ("title", "asks"),
    [("AI SDK", CHAT), ("AI SDK, OpenAI provider", RESPONSES), ("AI SDK, Anthropic provider", MESSAGES)],
)

RESPONSE = """
const stream = client.responses.stream({ model: "starter", input: "Say it again." });
const kinds = [];
for await (const event of stream) kinds.push(event.type);
const { output_text } = await stream.finalResponse();
console.log(JSON.stringify([output_text, kinds[0], kinds.at(-1)]));
"""

RUN_TOOLS = """
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    parse: JSON.parse,
    function: ({ city }) => `Rain in ${city}.`,
  },
};
const runner = client.chat.completions.runTools({
  model: "starter",
  messages: [{ role: "user", content: "Is it raining in Paris?" }],
  tools: [weather],
  stream: true,
});
console.log(JSON.stringify(await runner.finalContent()));
"""

STREAM_TOOLS = """
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const weather = tool({
  description: "What the weather is like.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Rain in ${city}.`,
});
const result = streamText({
  ...settings,
  prompt: "Is it raining in Paris?",
  tools: { weather },
  stopWhen: stepCountIs(5),
  onError: ({ error }) => { throw error; },
});
const kinds = [];
for await (const part of result.fullStream) kinds.push(part.type);
console.log(JSON.stringify([await result.text, kinds]));
"""

OBJECT = """
import { Output } from "ai";
import { z } from "zod";

const city = Output.object({ schema: z.object({ name: z.string(), inhabitants: z.number().int() }) });
const { output, usage } = await generateText({
  ...settings,
  prompt: "Tell me of Paris.",
  output: city,
  maxOutputTokens: 60,
});
console.log(JSON.stringify([output, usage.inputTokens > 0, usage.outputTokens > 0]));
"""


def test_the_openai_sdk_speaks_responses_too(server: JackfieldServer, desk: Desk) -> None:
    server.answers(lambda prompt: "It is Paris.")
    output = desk.run("OpenAI SDK for Node", "js", RESPONSE)
    assert output.out.startswith("It is Paris.\n"), output
    assert output.last == ["It is Paris.", "response.created", "response.completed"]
    assert desk.asked() == [CHAT, RESPONSES]


def test_the_openai_sdk_runs_tools(server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run("OpenAI SDK for Node", "js", RUN_TOOLS).last == "Done: Rain in Paris."
    assert desk.asked() == [CHAT] * 3


@each_ai_sdk
def test_the_ai_sdk_runs_tools(title: str, asks: Asked, server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    text, kinds = desk.run(title, "js", STREAM_TOOLS).last
    assert text == "Done: Rain in Paris."
    assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(kinds)
    assert "error" not in kinds
    assert desk.asked() == [asks] * 3


def test_the_ai_sdk_may_leave_out_what_it_takes_for_stored(server: JackfieldServer, desk: Desk) -> None:
    desk.change(", providerOptions: { openai: { store: false } }", "")
    server.answers(worker(("weather", {"city": "Paris"})))
    text, _ = desk.run("AI SDK, OpenAI provider", "js", STREAM_TOOLS).last
    assert text == "Done: Rain in Paris."
    assert desk.asked() == [RESPONSES] * 3


@each_ai_sdk
def test_the_ai_sdk_gets_objects_from_the_starter(title: str, asks: Asked, talking_desk: Desk) -> None:
    output = talking_desk.run(title, "js", OBJECT)
    assert "Paris" in output.out.splitlines()[0], output
    city, read, written = output.last
    assert set(city) == {"name", "inhabitants"}
    assert read and written
    assert talking_desk.asked() == [asks] * 2
