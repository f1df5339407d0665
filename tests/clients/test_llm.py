"""The command `llm`: prompts, schemas, and functions as tools."""

import json

import guide
import pytest
from asked import Asked
from desk import Desk, Output
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)
TITLE = "llm"

WEATHER = '''
def weather(city: str) -> str:
    """What the weather is like."""
    return f"Rain in {city}."
'''


def llm(desk: Desk, command: str) -> Output:
    """Run a command, set up as the page says."""
    folder = desk.home / "llm"
    (settings,) = (block for block in guide.section(TITLE) if block.file)
    desk.write(folder / str(settings.file), settings)
    return desk.program("sh", command, LLM_USER_PATH=str(folder))


def test_the_page_says_how(server: JackfieldServer, desk: Desk) -> None:
    server.says("It is Paris.")
    output = llm(desk, guide.only(TITLE, "sh").text + 'dirname "$(llm logs path)"')
    assert output.out.splitlines() == ["It is Paris.", str(desk.home / "llm")]
    assert desk.asked() == [CHAT]


@pytest.mark.parametrize(("also", "asks"), [("", CHAT), ("\n  responses: true", RESPONSES)])
def test_functions_are_called_and_give_their_results(
    also: str, asks: Asked, server: JackfieldServer, desk: Desk
) -> None:
    desk.change("supports_tools: true", f"supports_tools: true{also}")
    (desk.project / "tools.py").write_text(WEATHER)
    server.answers(worker(("weather", {"city": "Paris"})))
    output = llm(desk, "llm -m local --functions tools.py 'Is it raining in Paris?'")
    assert output.status == 0, output
    assert output.out.endswith("Done: Rain in Paris.\n")
    assert desk.asked() == [asks] * 2


@pytest.mark.parametrize("streamed", [True, False])
def test_the_starter_keeps_to_a_schema(talking_desk: Desk, streamed: bool) -> None:
    how = "" if streamed else "--no-stream"
    output = llm(talking_desk, f"llm -m local {how} -o max_tokens 100 --schema 'name, age int' 'A dog'")
    assert output.status == 0, output
    dog = json.loads(output.out)
    assert isinstance(dog["name"], str)
    assert isinstance(dog["age"], int)
    assert talking_desk.asked() == [CHAT]


def test_the_starter_goes_on_with_a_conversation(talking_desk: Desk) -> None:
    short = "-m local -o max_tokens 30"
    output = llm(talking_desk, f"llm {short} 'What is the capital of France?' && llm -c {short} 'And of Italy?'")
    assert output.status == 0, output
    assert "Paris" in output.out
    assert "Rome" in output.out
    assert talking_desk.asked() == [CHAT] * 2
