"""The libraries for Node."""

import pytest
from asked import Asked
from desk import Desk
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
PROGRAMS = ("OpenAI SDK for Node", "AI SDK")

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
  model: jackfield("starter"),
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
  model: jackfield("starter"),
  prompt: "Tell me of Paris.",
  output: city,
  maxOutputTokens: 60,
});
console.log(JSON.stringify([output, usage.inputTokens > 0, usage.outputTokens > 0]));
"""


@pytest.mark.parametrize("title", PROGRAMS)
def test_the_page_says_how(title: str, server: JackfieldServer, desk: Desk) -> None:
    server.says("It is Paris.")
    output = desk.run(title, "js")
    assert output.out == "It is Paris.\n", output
    assert desk.asked() == [CHAT]


def test_the_openai_sdk_runs_tools(server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run("OpenAI SDK for Node", "js", RUN_TOOLS).last == "Done: Rain in Paris."
    assert desk.asked() == [CHAT] * 3


def test_the_ai_sdk_runs_tools(server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    text, kinds = desk.run("AI SDK", "js", STREAM_TOOLS).last
    assert text == "Done: Rain in Paris."
    assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(kinds)
    assert "error" not in kinds
    assert desk.asked() == [CHAT] * 3


def test_the_ai_sdk_gets_objects(talking_desk: Desk) -> None:
    city, read, written = talking_desk.run("AI SDK", "js", OBJECT).last
    assert set(city) == {"name", "inhabitants"}
    assert read and written
    assert talking_desk.asked() == [CHAT] * 2
