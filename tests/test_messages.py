"""``/v1/messages``: what clients see of it, event by event, and what the model sees of the conversation."""

import gzip
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contract import validator
from faulty_upstream import FaultyUpstream, faulty_upstream
from jackfield.engine.request import CacheUse, FinishEvent, StartEvent, TokenEvent
from jackfield.errors import EngineError, MemoryPressureError
from jackfield.hooks import Identity, JsonObject, TextDelta, hookimpl
from jackfield.testing import JackfieldServer, Reply, StartServer, serving

WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {}}, "defer_loading": True}
HI = [{"role": "user", "content": "Hi"}]
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THINKING = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif -%}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if not enable_thinking %}<think></think>{% endif -%}
{% endif -%}
"""


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server(context_length=20_000)


@pytest.fixture(scope="module")
def thinker(jackfield_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JackfieldServer]:
    """A model that thinks, unless its prompt tells it not to."""
    folder = tmp_path_factory.mktemp("thinker")
    for file in jackfield_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": THINKING}))
    with serving(folder) as started:
        yield started


def body(**fields: Any) -> JsonObject:
    return {"model": "scripted", "max_tokens": 1000, "messages": HI, **fields}


def ask(server: JackfieldServer, *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    return server.post("/v1/messages", body(**fields), headers=headers)


def events(reply: Reply) -> list[JsonObject]:
    """All events of a stream; each is named by its type, and is what ``openapi.yaml`` says."""
    assert reply.status == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
            validator(schema_of(found[-1]["type"])).validate(found[-1])
    return found


def schema_of(event: str) -> str:
    return "MessagesErrorEnvelope" if event == "error" else "".join(part.title() for part in event.split("_"))


def in_short(reply: Reply) -> list[str]:
    """The events by what they are, deltas of one block as one."""
    short: list[str] = []
    for event in events(reply):
        match event:
            case {"content_block": block}:
                short.append(f"{event['index']} {block['type']}")
            case {"type": "content_block_delta", "delta": {"type": kind, **said}}:
                (more,) = said.values()
                if short[-1].startswith(f"{kind}: "):
                    short[-1] += more
                else:
                    short.append(f"{kind}: {more}")
            case {"type": "content_block_stop", "index": index}:
                short.append(f"{index} stop")
            case {"type": "message_delta", "delta": delta}:
                short.append(f"ends: {delta['stop_reason']}")
            case {"type": "error", "error": error}:
                short.append(f"error: {error['type']}")
            case _:
                short.append(event["type"])
    return short


def prompt(server: JackfieldServer, **fields: Any) -> str:
    """What the model reads of a request."""
    seen: list[str] = []

    def answer(text: str) -> str:
        seen.append(text)
        return "Yes."

    server.answers(answer)
    reply = ask(server, **fields)
    assert reply.status == 200, reply.text
    return seen[0]


def turns(*said: str) -> str:
    """The prompt of a conversation as the template writes it; each turn with its role in front."""
    whole = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, _, text in (one.partition(": ") for one in said)]
    return "".join(whole) + "<|im_start|>assistant\n"


# ---------------------------------------------------------------------------------------- the answer


def test_an_answer(server: JackfieldServer) -> None:
    server.says("Good morning.", cached_tokens=8)
    said = ask(server).json
    validator("MessageAnswer").validate(said)
    assert said["id"].startswith("msg_")
    assert said["content"] == [{"type": "text", "text": "Good morning.", "citations": []}]
    assert (said["stop_reason"], said["stop_sequence"]) == ("end_turn", None)
    assert said["usage"]["cache_read_input_tokens"] == 8
    assert said["usage"]["input_tokens"] + 8 == len(server.requests[0].prompt)
    assert said["usage"]["output_tokens"] == len("Good morning.")


def test_its_stream(server: JackfieldServer) -> None:
    server.says("Good morning.", cached_tokens=8)
    reply = ask(server, stream=True)
    assert in_short(reply) == [
        "message_start",
        "ping",
        "0 text",
        "text_delta: Good morning.",
        "0 stop",
        "ends: end_turn",
        "message_stop",
    ]
    begin, *_, end, _ = events(reply)
    assert begin["message"]["content"] == []
    assert begin["message"]["stop_reason"] is None
    for usage in (begin["message"]["usage"], end["usage"]):
        assert usage["cache_read_input_tokens"] == 8
        assert usage["input_tokens"] + 8 == len(server.requests[0].prompt)
    assert end["usage"]["output_tokens"] == len("Good morning.")


def test_calls_are_blocks_and_blanks_between_them_are_none(server: JackfieldServer) -> None:
    said = f"I look.\n{PARIS}\n{PARIS.replace('Paris', 'Rome')}\n"
    server.says(said)
    answer = ask(server, tools=[WEATHER]).json
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in answer["content"][1:]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({block["id"] for block in answer["content"][1:]}) == 2
    assert answer["stop_reason"] == "tool_use"

    server.says(said)
    short = in_short(ask(server, tools=[WEATHER], stream=True))
    deltas = [one for one in short if one.startswith("input_json_delta: ")]
    assert [json.loads(one.removeprefix("input_json_delta: ")) for one in deltas] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    assert [one for one in short if not one.startswith("input_json_delta: ")] == [
        "message_start",
        "ping",
        "0 text",
        "text_delta: I look.",
        "0 stop",
        "1 tool_use",
        "1 stop",
        "2 tool_use",
        "2 stop",
        "ends: tool_use",
        "message_stop",
    ]


def test_text_after_a_call_keeps_its_blanks(server: JackfieldServer) -> None:
    server.says(f"{PARIS}\n\nSo be it.")
    content = ask(server, tools=[WEATHER]).json["content"]
    assert [block.get("text") for block in content] == [None, "\n\nSo be it."]


def test_one_call_where_no_more_are_wanted(server: JackfieldServer) -> None:
    server.says(f"{PARIS}\n{PARIS}")
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = ask(server, tools=[WEATHER], tool_choice=choice).json
    assert [block["type"] for block in answer["content"]] == ["tool_use"]
    assert answer["stop_reason"] == "tool_use"


def test_a_call_that_is_cut_is_none(server: JackfieldServer) -> None:
    server.says(f"I look.\n{PARIS}")
    answer = ask(server, tools=[WEATHER], max_tokens=len(f"I look.\n{PARIS}") - 20).json
    assert "tool_use" not in [block["type"] for block in answer["content"]]
    assert answer["stop_reason"] == "max_tokens"


def test_every_block_of_a_stream_that_is_cut_is_closed(server: JackfieldServer) -> None:
    server.says(f"I look.\n{PARIS}")
    short = in_short(ask(server, tools=[WEATHER], max_tokens=len(f"I look.\n{PARIS}") - 20, stream=True))
    opened = [one.split()[0] for one in short if one.endswith((" text", " tool_use"))]
    closed = [one.split()[0] for one in short if one.endswith(" stop")]
    assert opened == closed
    assert short[-2:] == ["ends: max_tokens", "message_stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_it_says_which_stop_sequence_it_was(server: JackfieldServer, stream: bool) -> None:
    server.says("One, two, three.")
    reply = ask(server, stop_sequences=["four", " three", "."], stream=stream)
    end = events(reply)[-2]["delta"] if stream else reply.json
    assert (end["stop_reason"], end["stop_sequence"]) == ("stop_sequence", " three")
    assert "".join(text_of(reply)) == "One, two,"


def text_of(reply: Reply) -> Iterator[str]:
    if not reply.headers["content-type"].startswith("text/event-stream"):
        yield from (block["text"] for block in reply.json["content"])
        return
    yield from (event["delta"]["text"] for event in events(reply) if event["type"] == "content_block_delta")


def test_the_limit_is_told(server: JackfieldServer) -> None:
    server.says("Good morning.")
    said = ask(server, max_tokens=4).json
    assert (said["content"][0]["text"], said["stop_reason"]) == ("Good", "max_tokens")


def test_a_limit_that_the_context_does_not_leave_is_no_error(server: JackfieldServer) -> None:
    server.says("Yes.")
    assert ask(server, max_tokens=1_000_000).status == 200
    (request,) = server.requests
    assert request.max_tokens == 20_000 - len(request.prompt)


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_wanted_means_that_the_prompt_is_read(server: JackfieldServer, stream: bool) -> None:
    server.says("Good morning.")
    reply = ask(server, max_tokens=0, stream=stream)
    assert server.requests[0].max_tokens == 1
    if stream:
        assert in_short(reply) == ["message_start", "ping", "ends: max_tokens", "message_stop"]
        usage = events(reply)[-2]["usage"]
    else:
        assert (reply.json["content"], reply.json["stop_reason"]) == ([], "max_tokens")
        usage = reply.json["usage"]
    assert usage["output_tokens"] == 0
    assert usage["input_tokens"] == len(server.requests[0].prompt)


def test_an_answer_of_nothing_has_no_blocks(server: JackfieldServer) -> None:
    server.says(" \n")
    assert ask(server).json["content"] == []
    server.says("")
    assert in_short(ask(server, stream=True)) == ["message_start", "ping", "ends: end_turn", "message_stop"]


def test_the_extension(server: JackfieldServer) -> None:
    server.says("Yes.")
    assert ask(server, jackfield=True).json["jackfield"]["choices"][0]["ended_by"] == "stop"
    server.says("Yes.")
    *others, end, _ = events(ask(server, jackfield=True, stream=True))
    assert end["jackfield"]["choices"][0]["ended_by"] == "stop"
    assert not any("jackfield" in event for event in others)
    server.says("Yes.")
    assert "jackfield" not in ask(server).json


def test_sampling_reaches_the_engine(server: JackfieldServer) -> None:
    server.says("Yes.")
    ask(server, temperature=0.5, top_p=0.9, top_k=7, priority=3, timeout=60)
    (request,) = server.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, request.priority) == (0.5, 0.9, 7, 3)
    assert request.deadline is not None


# ---------------------------------------------------------------------------------------- thinking


@pytest.mark.parametrize("kind", ["enabled", "adaptive"])
def test_thoughts_are_a_block(thinker: JackfieldServer, kind: str) -> None:
    thinker.says("<think>\nHm.\n</think>\n\nYes.")
    said = ask(thinker, thinking={"type": kind, "budget_tokens": 1024}).json
    assert said["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "jackfield"},
        {"type": "text", "text": "Yes.", "citations": []},
    ]
    assert said["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    validator("MessageAnswer").validate(said)


def test_thoughts_stream(thinker: JackfieldServer) -> None:
    thinker.says("<think>\nHm.\n</think>\n\nYes.")
    assert in_short(ask(thinker, thinking={"type": "adaptive"}, stream=True)) == [
        "message_start",
        "ping",
        "0 thinking",
        "thinking_delta: Hm.",
        "signature_delta: jackfield",
        "0 stop",
        "1 text",
        "text_delta: Yes.",
        "1 stop",
        "ends: end_turn",
        "message_stop",
    ]


def test_thoughts_that_are_to_be_omitted_are_only_told_of(thinker: JackfieldServer) -> None:
    thinking = {"type": "adaptive", "display": "omitted"}
    thinker.says("<think>\nHm.\n</think>\n\nYes.")
    assert ask(thinker, thinking=thinking).json["content"][0] == {
        "type": "thinking",
        "thinking": "",
        "signature": "jackfield",
    }
    thinker.says("<think>\nHm.\n</think>\n\nYes.")
    short = in_short(ask(thinker, thinking=thinking, stream=True))
    assert short[2:5] == ["0 thinking", "signature_delta: jackfield", "0 stop"]


@pytest.mark.parametrize("fields", [{}, {"thinking": {"type": "disabled"}}, {"thinking": None}])
def test_nobody_gets_thoughts_who_did_not_ask(thinker: JackfieldServer, fields: JsonObject) -> None:
    assert prompt(thinker, **fields).endswith("assistant\n<think></think>")
    thinker.says("<think>\nHm, all the same.\n</think>\n\nYes.")
    assert [block["type"] for block in ask(thinker, **fields).json["content"]] == ["text"]


def test_the_model_is_told_to_think(thinker: JackfieldServer) -> None:
    assert prompt(thinker, thinking={"type": "adaptive"}).endswith("assistant\n")


def test_thoughts_come_back(thinker: JackfieldServer) -> None:
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": "somebody else's"},
        {"type": "redacted_thinking", "data": "c2VjcmV0"},
        {"type": "text", "text": "Yes."},
    ]
    whole = prompt(thinker, messages=[*HI, {"role": "assistant", "content": said}, *HI])
    assert "assistant\n<think>Hm.</think>Yes.<|im_end|>" in whole
    assert "c2VjcmV0" not in whole


# ---------------------------------------------------------------------------------------- what the model reads


def test_a_conversation(server: JackfieldServer) -> None:
    messages = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}, *HI]
    assert prompt(server, system="Be brief.", messages=messages) == turns(
        "system: Be brief.", "user: Hi", "assistant: Hello.", "user: Hi"
    )


def test_system_blocks_without_those_for_somebody_elses_accounts(server: JackfieldServer) -> None:
    blocks = ["x-anthropic-billing-header: cc_version=2.1.36.abc; cch=12345;", "Be brief.", "Be kind."]
    system = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in blocks]
    assert prompt(server, system=system) == turns("system: Be brief.\nBe kind.", "user: Hi")
    assert prompt(server, system=system[:1]) == turns("user: Hi")


def test_what_the_user_says_in_several_messages_is_one_turn(server: JackfieldServer) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "One."}]}, {"role": "user", "content": "Two."}]
    assert prompt(server, messages=messages) == turns("user: One.\nTwo.")


def test_instructions_in_the_middle(server: JackfieldServer) -> None:
    messages = [*HI, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    assert prompt(server, messages=messages) == turns("user: Hi", "system: Be brief.")


@pytest.mark.parametrize(("clear_at", "stays"), [("next_user_message", False), ("never", True), (None, True)])
def test_instructions_for_one_turn_alone(server: JackfieldServer, clear_at: str | None, stays: bool) -> None:
    middle = {"role": "system", "content": "Be brief.", "clear_at": clear_at}
    answered = [*HI, middle, {"role": "assistant", "content": "Yes."}]
    assert "Be brief." in prompt(server, messages=[*HI, middle])
    assert ("Be brief." in prompt(server, messages=[*answered, *HI])) == stays


def test_instructions_alone(server: JackfieldServer) -> None:
    alone = {"role": "system", "content": "Greet them.", "clear_at": "next_user_message"}
    assert prompt(server, messages=[alone]) == turns("system: Greet them.")


def test_documents_and_search_results_are_text(server: JackfieldServer) -> None:
    content = [
        {"type": "document", "title": "Tea", "source": {"type": "text", "media_type": "text/plain", "data": "Green."}},
        {"type": "document", "context": "Old.", "source": {"type": "content", "content": "Black."}},
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "text", "text": "White."}]},
            "citations": {"enabled": True},
        },
        {
            "type": "search_result",
            "title": "Shops",
            "source": "https://example.com",
            "content": [{"type": "text", "text": "Three."}],
        },
        {"type": "text", "text": "Which?"},
    ]
    said = "Tea\nGreen.\nOld.\nBlack.\nWhite.\nShops\nhttps://example.com\nThree.\nWhich?"
    assert prompt(server, messages=[{"role": "user", "content": content}]) == turns(f"user: {said}")


@pytest.mark.parametrize(
    "content", ["", [], [{"type": "document", "source": {"type": "content", "content": []}}]], ids=str
)
def test_a_turn_of_nothing_is_a_turn(server: JackfieldServer, content: Any) -> None:
    assert prompt(server, messages=[{"role": "user", "content": content}]) == turns("user: ")


def called(*results: JsonObject, **fields: Any) -> JsonObject:
    """A request after a call."""
    use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Zürich"}}
    return {
        "messages": [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": list(results)}],
        "tools": [WEATHER, CLOCK],
        **fields,
    }


def result(content: Any, **fields: Any) -> JsonObject:
    return {"type": "tool_result", "tool_use_id": "call_1", "content": content, **fields}


@pytest.mark.parametrize(
    ("answered", "read"),
    [
        (result("Sunny."), "Sunny."),
        (result([{"type": "text", "text": "Sunny,"}, {"type": "text", "text": "warm."}]), "Sunny,\nwarm."),
        (result(None), ""),
        (result([]), ""),
        ({"type": "tool_result", "tool_use_id": "call_1"}, ""),
        (result("No such city.", is_error=True), "The tool failed:\nNo such city."),
        (result("Sunny.", is_error=False), "Sunny."),
    ],
)
def test_what_a_tool_answered(server: JackfieldServer, answered: JsonObject, read: str) -> None:
    whole = prompt(server, **called(answered, {"type": "text", "text": "And now?"}))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert whole.endswith(
        turns(
            f"assistant: {call}",
            f"user: <tool_response>\n{read}\n</tool_response>",
            "user: And now?",
        )
    )


def test_what_is_said_before_a_tools_answer_stays_before_it(server: JackfieldServer) -> None:
    whole = prompt(server, **called({"type": "text", "text": "Wait."}, result("Sunny.")))
    assert whole.endswith(turns("user: Wait.", "user: <tool_response>\nSunny.\n</tool_response>"))


def test_a_deferred_tool_is_shown_where_the_conversation_comes_to_it(server: JackfieldServer) -> None:
    before = prompt(server, tools=[WEATHER, CLOCK])
    assert '"name": "weather"' in before
    assert "clock" not in before
    whole = prompt(server, **called(result([{"type": "tool_reference", "tool_name": "clock"}])))
    shown, _, response = whole.partition("<tool_response>\n")
    assert "clock" not in shown
    described = '{"description": "", "name": "clock", "parameters": {"type": "object", "properties": {}}}'
    assert response.startswith(f"<functions>\n<function>{described}</function>\n</functions>\n</tool_response>")


def test_a_deferred_tool_can_be_called(server: JackfieldServer) -> None:
    server.says('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>')
    reference = result([{"type": "tool_reference", "tool_name": "clock"}])
    (use,) = ask(server, **called(reference)).json["content"]
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "clock", {})


def test_a_tool_that_is_gone_is_no_error(server: JackfieldServer) -> None:
    whole = prompt(server, **called(result([{"type": "tool_reference", "tool_name": "radio"}])))
    assert "<tool_response>\nThere is no tool radio any more.\n</tool_response>" in whole


def test_tools_come_and_go(server: JackfieldServer) -> None:
    inline = {"name": "radio", "input_schema": {"type": "object"}}
    added = [
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "clock"}},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": inline}},
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "weather"}},
    ]
    fields = {"messages": [*HI, {"role": "system", "content": added}], "tools": [WEATHER, CLOCK]}
    last = prompt(server, **fields).rpartition("<|im_start|>system\n")[2]
    assert '"name": "clock"' in last
    assert '"name": "radio"' in last
    assert "There is no tool weather any more." in last
    server.says('<tool_call>\n{"name": "radio", "arguments": {}}\n</tool_call>')
    assert ask(server, **fields).json["content"][0]["name"] == "radio"


def test_tools_are_not_shown_where_none_may_be_called(server: JackfieldServer) -> None:
    assert prompt(server, tools=[WEATHER], tool_choice={"type": "none"}) == turns("user: Hi")


def test_an_answer_that_has_begun_goes_on(server: JackfieldServer) -> None:
    messages = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "The best answer is ("}]}]
    assert prompt(server, messages=messages) == turns("user: Hi") + "The best answer is ("
    server.says("B)")
    assert ask(server, messages=messages).json["content"][0]["text"] == "B)"


STRICT = """\
{%- for message in messages -%}
{%- if message.role == 'system' and not loop.first -%}
{{- raise_exception('System message must be at the beginning.') -}}
{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{{ '<|im_start|>assistant\n' }}"""


def test_templates_that_take_no_instructions_in_the_middle_get_them_from_the_user(
    jackfield_tokenizer: Path, tmp_path: Path
) -> None:
    for file in jackfield_tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": STRICT}))
    with serving(tmp_path) as strict:
        answered = {"role": "assistant", "content": "Yes."}
        middle = {"role": "system", "content": "Be brief."}
        messages = [*HI, middle, answered, middle]
        assert prompt(strict, system="Be kind.", messages=messages) == turns(
            "system: Be kind.", "user: Hi\n\nBe brief.", "assistant: Yes.", "user: Be brief."
        )


# ---------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief.", "tools": [WEATHER, CLOCK]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        called(result("Sunny.")),
        {"messages": [*HI, {"role": "assistant", "content": "The best answer is ("}]},
    ],
    ids=["plain", "tools", "no tools", "a call", "begun"],
)
def test_the_count_is_what_the_model_reads(server: JackfieldServer, fields: JsonObject) -> None:
    counted = {key: value for key, value in body(**fields).items() if key != "max_tokens"}
    reply = server.post("/v1/messages/count_tokens", counted)
    assert reply.status == 200, reply.text
    assert reply.json == {"input_tokens": ask(server, **fields).json["usage"]["input_tokens"]}


def test_nothing_is_generated_for_a_count(server: JackfieldServer) -> None:
    reply = server.post("/v1/messages/count_tokens", {"model": "scripted", "messages": HI, "max_tokens": 5})
    assert reply.status == 400
    assert reply.json["error"]["param"] == "max_tokens"
    assert server.requests == []


# ---------------------------------------------------------------------------------------- errors


def refused(server: JackfieldServer, path: str = "/v1/messages", **fields: Any) -> JsonObject:
    """The error that a request gets."""
    reply = server.post(path, body(**fields))
    assert reply.status == 400, reply.text
    validator("MessagesErrorEnvelope").validate(reply.json)
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.request_id
    error: JsonObject = reply.json["error"]
    return error


def image(**source: str) -> JsonObject:
    return {"type": "image", "source": source}


PICTURE = image(type="base64", media_type="image/png", data="iVBORw0KGgo=")
SHELL = {"type": "bash_20250124", "name": "bash"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"tools": [SHELL]}, "tools.0.type"),
        ({"tools": [{"name": "weather"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "clock"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ({"messages": [{"role": "tool", "content": "Sunny."}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "thought"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]},
            "messages.0.content.0.source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [image(type="file", file_id="f")]}]},
            "messages.0.content.0.source.type",
        ),
        ({"messages": called()["messages"][:2]}, "messages.1.content"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(server: JackfieldServer, fields: JsonObject, param: str) -> None:
    error = refused(server, **fields)
    assert error["param"] == param
    assert param.rpartition(".")[2] in error["message"] or param in error["message"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("field", "hint"), [("stop", "stop_sequences"), ("response_format", "output_config"), ("temprature", "temperature")]
)
def test_what_others_know_is_refused_with_what_to_use_instead(server: JackfieldServer, field: str, hint: str) -> None:
    assert f"'{hint}'" in refused(server, **{field: "x"})["suggestions"][0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, PICTURE]}]}, "messages.0.content.1"),
        (called(result([{"type": "text", "text": "Here:"}, PICTURE])), "messages.2.content.0.content.1"),
        (
            {
                "system": "Look.",
                "messages": [
                    {"role": "user", "content": "One."},
                    {
                        "role": "user",
                        "content": [{"type": "document", "source": {"type": "content", "content": [PICTURE]}}],
                    },
                ],
            },
            "messages.1.content.0.source.content.0",
        ),
    ],
    ids=["message", "result", "document"],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_an_image_that_the_model_cannot_read_is_named_as_the_client_knows_it(
    server: JackfieldServer, path: str, fields: JsonObject, param: str
) -> None:
    asked = body(**fields)
    if path.endswith("count_tokens"):
        del asked["max_tokens"]
    reply = server.post(path, asked)
    assert reply.status == 400
    assert reply.json["error"]["param"] == param
    assert f"{param} " in reply.json["error"]["message"]


def test_a_schema_that_cannot_be_enforced_is_named_as_the_client_knows_it(server: JackfieldServer) -> None:
    impossible = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}, "required": ["a"]}
    tools = [WEATHER, {"name": "clock", "input_schema": impossible, "strict": True}]
    assert refused(server, tools=tools)["param"] == "tools.1.input_schema"
    config = {"format": {"type": "json_schema", "schema": impossible}}
    error = refused(server, output_config=config)
    assert error["param"] == "output_config.format.schema"
    assert "output_config.format.schema" in error["message"]


def test_too_long_a_prompt_is_told_in_the_words_that_clients_know(server: JackfieldServer) -> None:
    error = refused(server, messages=[{"role": "user", "content": "x" * 30_000}])
    assert error["message"] == "prompt is too long: 30019 tokens > 20000 maximum"
    assert error["details"] == {"error_code": "context_length_exceeded"}
    assert error["suggestions"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (MemoryPressureError(), 503, "overloaded_error"),
        (EngineError("Broken."), 503, "overloaded_error"),
        (RuntimeError("A bug."), 500, "api_error"),
    ],
    ids=["memory", "engine", "bug"],
)
def test_an_engine_that_fails_before_it_has_said_anything(
    server: JackfieldServer, error: Any, status: int, kind: str
) -> None:
    server.plays([[FinishEvent("error", error)]])
    reply = ask(server)
    assert reply.status == status
    assert reply.json["error"]["type"] == kind
    assert ("retry-after" in reply.headers) == (status == 503)
    server.plays([[FinishEvent("error", error)]])
    reply = ask(server, stream=True)
    assert in_short(reply) == [f"error: {kind}"]
    assert events(reply)[0]["request_id"] == reply.request_id


def test_a_stream_that_breaks_later_ends_as_cut(server: JackfieldServer) -> None:
    server.says("Good m", error=EngineError("Broken."))
    assert in_short(ask(server, stream=True)) == [
        "message_start",
        "ping",
        "0 text",
        "text_delta: Good m",
        "0 stop",
        "ends: max_tokens",
        "message_stop",
    ]


def test_a_call_in_which_the_engine_fails_is_closed(server: JackfieldServer) -> None:
    said = [[TokenEvent(token)] for token in server.tokenizer.encode(PARIS[:-25])]
    server.plays([[StartEvent(0.0, CacheUse())], *said, [FinishEvent("error", EngineError("Broken."))]])
    short = in_short(ask(server, tools=[WEATHER], stream=True))
    assert sum(one.endswith((" text", " tool_use")) for one in short) == sum(one.endswith(" stop") for one in short)
    assert short[-2:] == ["ends: max_tokens", "message_stop"]


def test_other_errors_of_the_client(server: JackfieldServer) -> None:
    known = {"Anthropic-Version": "2023-06-01"}
    for reply, status in (
        (server.get("/v1/models", headers={**known, "Host": "evil.example.net"}), 421),
        (server.post("/v1/models/unload", {"model": "scripted"}, headers=known), 409),
    ):
        assert (reply.status, reply.json["error"]["type"]) == (status, "invalid_request_error")


def test_a_body_that_is_too_large(jackfield_server: StartServer) -> None:
    server = jackfield_server(max_body_bytes=1024)
    reply = ask(server, messages=[{"role": "user", "content": "x" * 2000}])
    assert (reply.status, reply.json["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_a_body_that_is_compressed(server: JackfieldServer, path: str) -> None:
    address = server.url.removeprefix("http://")
    for encoding, status in (("gzip", 415), ("identity, br", 415), ("Identity", 200)):
        whole = json.dumps(body()).encode()
        sent = whole if status == 200 else gzip.compress(whole)
        with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
            connection.request("POST", path, sent, {"Content-Encoding": encoding})
            response = connection.getresponse()
            told = json.loads(response.read())
        assert response.status == status
        if status == 415:
            assert response.headers["accept-encoding"] == "identity"
            assert told["error"]["type"] == "invalid_request_error"
            assert encoding in told["error"]["message"]
            assert "Content-Encoding" in told["error"]["suggestions"][0]
            assert "unsupported_content_encoding" in json.dumps(told)


def test_an_unknown_model(server: JackfieldServer) -> None:
    for path in ("/v1/messages", "/messages", "/v1/messages/count_tokens"):
        asked = {"model": "claude-opus-4-6", "messages": HI} | ({} if "count" in path else {"max_tokens": 1})
        reply = server.post(path, asked)
        assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error")
        assert "scripted" in reply.json["error"]["suggestions"][0]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models/none"), ("GET", "/v1/nothing"), ("GET", "/v1")])
def test_other_endpoints_answer_anthropics_clients_in_their_envelope(
    server: JackfieldServer, method: str, path: str
) -> None:
    reply = server.request(method, path, headers={"anthropic-version": "2023-06-01"})
    assert reply.status == 404
    validator("MessagesErrorEnvelope").validate(reply.json)
    assert reply.headers["request-id"] == reply.request_id
    other = server.request(method, path)
    validator("ErrorEnvelope").validate(other.json)
    assert "request-id" not in other.headers


# ---------------------------------------------------------------------------------------- betas


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_fields_of_betas_are_ignored_where_betas_are_used(server: JackfieldServer, path: str) -> None:
    asked = body(brand_new={"type": "auto"})
    if path.endswith("count_tokens"):
        del asked["max_tokens"]
    assert server.post(path, asked).json["error"]["param"] == "brand_new"
    assert server.post(path, asked, headers={"anthropic-beta": "brand-new-2027-01-01"}).status == 200
    assert server.post(f"{path}?beta=true", asked).status == 200


def test_known_fields_are_checked_all_the_same(server: JackfieldServer) -> None:
    reply = ask(server, headers={"anthropic-beta": "brand-new-2027-01-01"}, container="c")
    assert (reply.status, reply.json["error"]["param"]) == (400, "container")


# ---------------------------------------------------------------------------------------- plugins


class Guard:
    """Knows one key, as plugins were told to look for it."""

    @hookimpl
    async def authenticate(self, request: http.client.HTTPConnection) -> Identity | None:
        sent = request.headers.get("authorization")
        return Identity("one", frozenset({"inference"})) if sent == "Bearer secret" else None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "secret"}, 200),
        ({"Authorization": "Bearer secret"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": "secret", "Authorization": "Bearer wrong"}, 401),
        ({}, 401),
    ],
    ids=str,
)
def test_a_key_is_a_key_in_either_header(jackfield_server: StartServer, headers: dict[str, str], status: int) -> None:
    server = jackfield_server(("guard", Guard()))
    reply = ask(server, headers=headers)
    assert reply.status == status
    if status == 401:
        assert reply.json["error"]["type"] == "authentication_error"
        validator("MessagesErrorEnvelope").validate(reply.json)
    assert server.get("/v1/models", headers=headers).status == status


def test_a_key_that_is_not_for_this(jackfield_server: StartServer) -> None:
    server = jackfield_server(("guard", Guard()))
    headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
    reply = server.get("/v1/plugins", headers=headers)
    assert (reply.status, reply.json["error"]["type"]) == (403, "permission_error")


class Changes:
    """Changes what it may."""

    @hookimpl
    def transform_request(self, body: JsonObject) -> JsonObject:
        return {**body, "system": "Be brief."}

    @hookimpl
    def transform_response(self, response: JsonObject) -> JsonObject:
        return {**response, "content": [{**block, "text": block["text"].upper()} for block in response["content"]]}

    @hookimpl
    def transform_delta(self, delta: TextDelta) -> TextDelta:
        return TextDelta(delta.choice, delta.text.upper())


def test_plugins_see_requests_and_answers_in_these_words(jackfield_server: StartServer) -> None:
    server = jackfield_server(("changes", Changes()))
    server.says("Yes.")
    assert ask(server).json["content"][0]["text"] == "YES."
    assert "Be brief." in server.tokenizer.decode(server.requests[0].prompt)
    server.says("Yes.")
    assert "".join(text_of(ask(server, stream=True))) == "YES."


class Elsewhere:
    """A backend of somebody else's."""

    bodies: list[JsonObject]

    def __init__(self, bodies: list[JsonObject]) -> None:
        self.bodies = bodies

    @hookimpl
    def register_backends(self, register: Callable[..., None]) -> None:
        register("elsewhere", lambda server: self)

    @hookimpl
    def select_backend(self) -> str:
        return "elsewhere"

    def serves(self, request: Any) -> bool:
        return True

    async def answer(self, request: Any, body: JsonObject) -> Any:
        self.bodies.append(body)
        yield "From elsewhere."


def test_backends_of_plugins_get_it_in_openais_words(jackfield_server: StartServer) -> None:
    elsewhere = Elsewhere([])
    server = jackfield_server(("elsewhere", elsewhere))
    said = ask(server, system="Be brief.", stop_sequences=["."]).json
    assert said["content"][0]["text"] == "From elsewhere."
    (got,) = elsewhere.bodies
    assert got["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert got["stop"] == ["."]


@pytest.fixture(scope="module")
def office() -> Iterator[FaultyUpstream]:
    with faulty_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def passing_on(jackfield_tokenizer: Path, office: FaultyUpstream) -> Iterator[JackfieldServer]:
    speaks = ("openai", "vllm", "llama.cpp")
    upstreams = {name: {"url": office.url, "speaks": name} for name in speaks}
    models = {name: {"route": [name]} for name in speaks}
    with serving(jackfield_tokenizer, models=models, upstreams=upstreams) as started:
        yield started


SILENCE: JsonObject = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("model", "thinking", "sent"),
    [
        ("openai", None, {}),
        ("openai", {"type": "disabled"}, SILENCE),
        ("openai", {"type": "enabled", "budget_tokens": 2000}, {"chat_template_kwargs": {"enable_thinking": True}}),
        # These know it, and would let the model think.
        ("vllm", None, SILENCE),
        ("llama.cpp", None, SILENCE),
    ],
    ids=str,
)
def test_other_servers_hear_of_thoughts_what_the_client_says(
    passing_on: JackfieldServer, office: FaultyUpstream, model: str, thinking: JsonObject | None, sent: JsonObject
) -> None:
    office.bodies.clear()
    assert ask(passing_on, model=model, thinking=thinking).status == 200
    (got,) = office.bodies
    assert {name: value for name, value in got.items() if name == "chat_template_kwargs"} == sent


def test_a_client_that_hangs_up_stops_the_work(server: JackfieldServer) -> None:
    server.says("Good morning.")
    with server.held():
        with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as client:
            client.request("POST", "/v1/messages", json.dumps(body(stream=True)))
            with client.getresponse() as response:
                assert response.readline() == b"event: message_start\n"
        server.event("cancelled")
    assert server.engine.cancelled
