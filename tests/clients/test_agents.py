"""Coding assistants, headless: each calls its tools, gets their results, and ends."""

import re
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import guide
import pytest
from asked import Asked
from desk import Desk, Output
from minds import thinker, worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)


@dataclass(frozen=True)
class Assistant:
    """One, with its own names for its tools and their arguments."""

    title: str
    read: tuple[str, dict[str, Any]]
    write: tuple[str, dict[str, Any]]
    shell: tuple[str, dict[str, Any]]
    environment: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    """Of the page's settings, as it tells of them in words."""
    asks: Asked = CHAT
    recalls: bool = False
    """It brings the model's thoughts back with the results of its calls."""

    def run(self, desk: Desk) -> Output:
        """Have it do what the page asks it to."""
        for old, new in self.changes.items():
            desk.change(old, new)
        desk.set_up(self.title)
        return desk.run(self.title, **self.environment)


CN = Assistant(
    "Continue",
    read=("Read", {"filepath": "notes.txt"}),
    write=("Write", {"filepath": "copy.txt", "content": "written"}),
    shell=("Bash", {"command": "cat copy.txt notes.txt"}),
)
PI = Assistant(
    "pi",
    read=("read", {"path": "notes.txt"}),
    write=("write", {"path": "copy.txt", "content": "written"}),
    shell=("bash", {"command": "cat copy.txt notes.txt"}),
    environment={"PI_OFFLINE": "1"},
    recalls=True,
)
PI_RESPONSES = replace(PI, asks=RESPONSES, changes={"openai-completions": "openai-responses"})
PI_MESSAGES = replace(
    PI,
    asks=Asked("POST", "/v1/messages", 200),
    changes={"openai-completions": "anthropic-messages", f"{guide.URL}/v1": guide.URL},
    recalls=False,
)
OPENCODE = Assistant(
    "opencode",
    read=("read", {"filePath": "notes.txt"}),
    write=("write", {"filePath": "copy.txt", "content": "written"}),
    shell=("bash", {"command": "cat copy.txt notes.txt", "description": "Shows both files"}),
    environment={"OPENCODE_DISABLE_MODELS_FETCH": "1"},
    recalls=True,
)
CLAUDE_CODE = Assistant(
    "Claude Code",
    read=("Read", {"file_path": "notes.txt"}),
    write=("Write", {"file_path": "copy.txt", "content": "written"}),
    shell=("Bash", {"command": "cat copy.txt notes.txt", "description": "Shows both files"}),
    environment={"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "4096"},
    asks=Asked("POST", "/v1/messages?beta=true", 200),
)
CODEX = Assistant(
    "Codex CLI",
    read=("exec_command", {"cmd": "cat notes.txt"}),
    write=("exec_command", {"cmd": "printf written > copy.txt"}),
    shell=("exec_command", {"cmd": "cat copy.txt notes.txt"}),
    asks=RESPONSES,
    recalls=True,
)
LIMITED = [CN, PI, PI_RESPONSES, PI_MESSAGES, OPENCODE]
"""They end when an answer is cut; Claude Code asks on, and Codex sets no limit."""


def each(assistants: list[Assistant]) -> pytest.MarkDecorator:
    ids = [f"{one.title} at {one.asks.path.partition('?')[0]}" for one in assistants]
    return pytest.mark.parametrize("assistant", assistants, ids=ids)


@each([*LIMITED, CLAUDE_CODE, CODEX])
def test_it_calls_its_tools_and_tells_what_they_gave(assistant: Assistant, server: JackfieldServer, desk: Desk) -> None:
    secret = uuid.uuid4().hex
    (desk.project / "notes.txt").write_text(f"{secret}\n")
    server.answers(worker(assistant.read, assistant.write, assistant.shell))
    output = assistant.run(desk)
    assert output.status == 0, output
    # Nobody but the file has told the model.
    assert re.search(rf"Done: [^\x00]*written{secret}", output.out), output
    assert (desk.project / "copy.txt").read_text() == "written"
    # A request for each call, one for the end, and perhaps one for a title.
    asked = desk.asked()
    assert set(asked) == {assistant.asks}
    assert len(asked) in (4, 5)


@each([*LIMITED, CLAUDE_CODE, CODEX])
def test_what_the_model_thinks_is_no_part_of_what_it_says(
    assistant: Assistant, thinking_server: JackfieldServer, thinking_desk: Desk
) -> None:
    (thinking_desk.project / "notes.txt").write_text("A note.\n")
    thinking_server.answers(thinker(worker(assistant.read)))
    output = assistant.run(thinking_desk)
    assert output.status == 0, output
    assert re.search(r"Done: [^\x00]*A note\.", output.out), output
    assert "What is there to do?" not in output.out
    again = thinking_server.tokenizer.decode(thinking_server.requests[-1].prompt)
    assert ("What is there to do?" in again) == assistant.recalls
    assert set(thinking_desk.asked()) == {assistant.asks}


@each([*LIMITED, CLAUDE_CODE, CODEX])
def test_it_survives_garbage(assistant: Assistant, babbling_desk: Desk) -> None:
    output = assistant.run(babbling_desk)
    # Which may be nothing at all.
    assert output.status == 0, output
    assert set(babbling_desk.asked()) == {assistant.asks}


@each(LIMITED)
def test_it_ends_when_an_answer_is_cut(assistant: Assistant, server: JackfieldServer, desk: Desk) -> None:
    server.answers(lambda prompt: "On and on. " * 1000)
    output = assistant.run(desk)
    assert output.status == 0, output
    assert "On and on." in output.out
    assert set(desk.asked()) == {assistant.asks}
    assert any(record.data["finish_reasons"] == ["length"] for record in server.records if record.kind == "completed")


def test_claude_code_asks_for_the_rest_of_an_answer_and_says_when_it_gives_up(
    server: JackfieldServer, desk: Desk
) -> None:
    server.answers(lambda prompt: "On and on. " * 1000)
    output = CLAUDE_CODE.run(desk)
    assert output.status == 1, output
    assert "output token maximum" in output.out
    assert desk.asked() == [CLAUDE_CODE.asks] * 4


def test_claude_code_knows_a_prompt_that_is_too_long(small_desk: Desk) -> None:
    output = CLAUDE_CODE.run(small_desk)
    assert output.status == 1, output
    assert "Prompt is too long" in output.out
    assert {one.status for one in small_desk.asked()} == {400}


@pytest.mark.parametrize("small_desk", [5_120], indirect=True)
@each([PI, PI_RESPONSES, PI_MESSAGES])
def test_pi_makes_a_conversation_shorter_that_is_too_long(assistant: Assistant, small_desk: Desk) -> None:
    output = assistant.run(small_desk)
    assert output.status == 0, output
    # Which does not help here: its own instructions are too long.
    assert [one.status for one in small_desk.asked()] == [400, 200, 400]


def test_codex_knows_a_prompt_that_is_too_long(small_desk: Desk) -> None:
    output = CODEX.run(small_desk)
    assert output.status == 1, output
    assert "ran out of room in the model's context window" in output.err
    assert [one.status for one in small_desk.asked()] == [400]
