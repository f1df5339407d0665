"""Pydantic AI: texts, streams, tools, and answers as objects."""

import pytest
from asked import Asked
from desk import Desk
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)
TITLE = "Pydantic AI"

STREAM = """
import asyncio, json

async def read():
    async with agent.run_stream("Say it again.") as answer:
        return [text async for text in answer.stream_text(delta=True, debounce_by=None)]

print(json.dumps(asyncio.run(read())))
"""

OBJECT = """
import json
from pydantic import BaseModel
from pydantic_ai import NativeOutput

class City(BaseModel):
    name: str
    inhabitants: int

settings = {"max_tokens": 60}
results = [
    agent.run_sync("Tell me of Paris.", output_type=kind, model_settings=settings).output.model_dump()
    for kind in (City, NativeOutput(City))
]
print(json.dumps(results))
"""

TOOL = """
import json

@agent.tool_plain
def weather(city: str) -> str:
    return f"Rain in {city}."

print(json.dumps(agent.run_sync("Is it raining in Paris?").output))
"""


def test_the_page_says_how_and_streams_are_read_too(server: JackfieldServer, desk: Desk) -> None:
    server.answers(lambda prompt: "It is Paris.")
    output = desk.run(TITLE, "python", STREAM)
    assert output.out.startswith("It is Paris.\n"), output
    assert "".join(output.last) == "It is Paris."
    assert len(output.last) > 1
    assert desk.asked() == [CHAT] * 2


def test_the_starter_answers_with_objects(talking_desk: Desk) -> None:
    """As the arguments of a call that is required, and as the answer itself."""
    output = talking_desk.run(TITLE, "python", OBJECT)
    assert "Paris" in output.out.splitlines()[0], output
    assert [set(city) for city in output.last] == [{"name", "inhabitants"}] * 2
    assert talking_desk.asked() == [CHAT] * 3


@pytest.mark.parametrize(("model", "asks"), [("OpenAIChatModel", CHAT), ("OpenAIResponsesModel", RESPONSES)])
def test_a_tool_is_called_and_gives_its_result(model: str, asks: Asked, server: JackfieldServer, desk: Desk) -> None:
    desk.change("OpenAIChatModel", model)
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run(TITLE, "python", TOOL).last == "Done: Rain in Paris."
    # The page's own question has no tools; then there is the call, and what is made of its result.
    assert desk.asked() == [asks] * 3
