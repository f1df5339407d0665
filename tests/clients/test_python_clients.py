"""Libraries for Python that have a virtual environment of their own."""

import pytest
from asked import Asked
from desk import APART, Desk
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)

each_langchain = pytest.mark.parametrize(
    ("old", "new", "asks"), [("", "", CHAT), ("ChatOpenAI(", "ChatOpenAI(use_responses_api=True, ", RESPONSES)]
)
each_agent = pytest.mark.parametrize(
    ("old", "new", "asks"), [("", "", CHAT), ("OpenAIChatCompletionsModel", "OpenAIResponsesModel", RESPONSES)]
)
"""With the page's own settings, and as it says in words."""

LANGCHAIN_TOOL = """
import json
from langchain_core.messages import HumanMessage, ToolMessage

def weather(city: str) -> str:
    '''What the weather is like.'''
    return f"Rain in {city}."

able = model.bind_tools([weather])
conversation = [HumanMessage("Is it raining in Paris?")]
chunks = list(able.stream(conversation))
call = sum(chunks[1:], chunks[0])
(asked,) = call.tool_calls
conversation += [call, ToolMessage(weather(**asked["args"]), tool_call_id=asked["id"])]
print(json.dumps(able.invoke(conversation).text))
"""

LANGCHAIN_OBJECT = """
import json
from pydantic import BaseModel

class City(BaseModel):
    name: str
    inhabitants: int

brief = model.model_copy(update={"max_tokens": 60})
cities = [
    brief.with_structured_output(City, method=method).invoke("Tell me of Paris.").model_dump()
    for method in ("json_schema", "function_calling")
]
probable = brief.bind(logprobs=True, top_logprobs=2).invoke("What is the capital of France?")
print(json.dumps([*cities, probable.response_metadata["logprobs"]["content"][0]["logprob"]]))
"""

LITELLM_TOOL = """
import json
from litellm import stream_chunk_builder

parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
server = {"api_base": "http://127.0.0.1:8080/v1", "api_key": "none"}
question = [{"role": "user", "content": "Is it raining in Paris?"}]
chunks = completion("openai/starter", question, tools=tools, stream=True, **server)
message = stream_chunk_builder(list(chunks)).choices[0].message
(call,) = message.tool_calls
city = json.loads(call.function.arguments)["city"]
result = {"role": "tool", "tool_call_id": call.id, "content": f"Rain in {city}."}
answer = completion("openai/starter", [*question, message.model_dump(), result], tools=tools, **server)
print(json.dumps(answer.choices[0].message.content))
"""

AGENTS_TOOL = """
import asyncio, json
from agents import function_tool

@function_tool
def weather(city: str) -> str:
    '''What the weather is like.'''
    return f"Rain in {city}."

agent.tools.append(weather)

async def ask():
    run = Runner.run_streamed(agent, "Is it raining in Paris?")
    kinds = [event.type async for event in run.stream_events()]
    return run.final_output, "raw_response_event" in kinds

# The loop that the client has been used in.
print(json.dumps(asyncio.get_event_loop().run_until_complete(ask())))
"""


@each_langchain
def test_langchain_calls_a_tool(old: str, new: str, asks: Asked, server: JackfieldServer, desk: Desk) -> None:
    desk.change(old, new)
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run("LangChain", "python", LANGCHAIN_TOOL, APART).last == "Done: Rain in Paris."
    assert desk.asked() == [asks] * 3


def test_langchain_gets_objects_and_probabilities(talking_desk: Desk) -> None:
    output = talking_desk.run("LangChain", "python", LANGCHAIN_OBJECT, APART)
    *cities, logprob = output.last
    assert "Paris" in output.out.splitlines()[0]
    assert [set(city) for city in cities] == [{"name", "inhabitants"}] * 2
    assert logprob < 0
    assert talking_desk.asked() == [CHAT] * 4


def test_litellm_calls_a_tool(server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run("LiteLLM", "python", LITELLM_TOOL, APART).last == "Done: Rain in Paris."
    assert desk.asked() == [CHAT] * 3


@each_agent
def test_agents_call_a_tool(old: str, new: str, asks: Asked, server: JackfieldServer, desk: Desk) -> None:
    desk.change(old, new)
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run("OpenAI Agents SDK", "python", AGENTS_TOOL, APART).last == ["Done: Rain in Paris.", True]
    assert desk.asked() == [asks] * 3
