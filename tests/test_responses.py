"""``/v1/responses`` over a scripted engine: what the model is given, and what comes back of what it says."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contract import validator
from jackfield.engine.triggers import TriggeredGrammars
from jackfield.errors import DeadlineExceededError, EngineError, QueueFullError
from jackfield.hooks import Compressed, Identity, hookimpl
from jackfield.recent_items import RecentItems
from jackfield.response_store import FILE
from jackfield.testing import JackfieldServer, Reply, StartServer

LOOK = {"type": "function", "name": "look", "description": "Look it up.", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def server(jackfield_server: StartServer) -> JackfieldServer:
    return jackfield_server()


def ask(server: JackfieldServer, said: Any = "Hi", **fields: Any) -> Reply:
    headers = fields.pop("headers", None)
    return server.post("/v1/responses", {"model": "scripted", "input": said, **fields}, headers=headers)


def whole(server: JackfieldServer, said: Any = "Hi", **fields: Any) -> dict[str, Any]:
    reply = ask(server, said, **fields)
    assert reply.status == 200, reply.text
    validator("Response").validate(reply.json)
    return reply.json


def events(reply: Reply) -> list[dict[str, Any]]:
    """A stream's events, each of which says twice what it is."""
    assert reply.status == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def types(found: list[dict[str, Any]]) -> list[str]:
    """Without ``response.``, and many deltas as one."""
    names = [event["type"].removeprefix("response.") for event in found]
    return [name for i, name in enumerate(names) if not name.endswith(".delta") or name != names[i - 1]]


def refused(reply: Reply, status: int = 400) -> dict[str, Any]:
    assert reply.status == status, reply.text
    validator("ErrorEnvelope").validate(reply.json)
    assert reply.json["error"]["suggestions"]
    return reply.json["error"]


def prompt(server: JackfieldServer) -> str:
    """The last one."""
    return server.tokenizer.decode(list(server.requests[-1].prompt), special=True)


# ---------------------------------------------------------------------------------------- what the model is given


def prompt_of(server: JackfieldServer, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The prompt that ``/v1/chat/completions`` makes of a conversation."""
    assert server.chat(messages, **fields).status == 200
    return prompt(server)


def test_a_string_is_what_the_user_says(server: JackfieldServer) -> None:
    whole(server, "Hi", instructions="Be brief.")
    said = prompt(server)
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert said == prompt_of(server, expected)


def test_a_conversation_of_items(server: JackfieldServer) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who?"}], "status": "completed"},
        {
            "role": "assistant",
            "id": "msg_1",
            "phase": "final_answer",
            "content": [{"type": "output_text", "text": "Me.", "annotations": [], "logprobs": []}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Where?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAAAAB"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "message", "role": "assistant", "content": "I will look."},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"a": 1}', "status": "completed"},
        {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": '{"a": 2}', "id": None},
        {"type": "function_call_output", "call_id": "call_1", "output": "one"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call", "call_id": "call_3", "name": "look", "arguments": '{"a": 1}'},
        {"type": "message", "role": "assistant", "content": "And I look again."},
        {"type": "function_call_output", "call_id": "call_3", "output": "three"},
        {"role": "user", "content": "And?"},
    ]
    whole(server, items, tools=[LOOK])
    said = prompt(server)
    call = {"type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    expected = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": "I will look.",
            "tool_calls": [
                {"id": "call_1", **call},
                {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": '{"a": 2}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        {"role": "assistant", "tool_calls": [{"id": "call_3", **call}]},
        {"role": "assistant", "content": "And I look again."},
        {"role": "tool", "tool_call_id": "call_3", "content": "three"},
        {"role": "user", "content": "And?"},
    ]
    function = {name: value for name, value in LOOK.items() if name != "type"}
    assert said == prompt_of(server, expected, tools=[{"type": "function", "function": function}])


def test_fields_reach_the_engine(server: JackfieldServer) -> None:
    given = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["x", "y"]}
    given |= {"frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"1": 2}}
    said = whole(server, max_output_tokens=9, priority=-3, timeout=60, top_logprobs=2, **given)
    request = server.requests[-1]
    assert request.max_tokens == 9
    assert (request.priority, request.deadline is not None, request.top_logprobs) == (-3, True, 2)
    sampling = request.sampling
    for name in ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"):
        assert getattr(sampling, name) == given[name]
        assert said.get(name, given[name]) == given[name]
    assert (sampling.repetition_penalty, sampling.logit_bias, sampling.seed) == (1.5, {1: 2}, 7)
    assert (said["max_output_tokens"], said["top_logprobs"]) == (9, 2)


def test_a_schema_is_enforced_and_comes_back(server: JackfieldServer) -> None:
    shape = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    said = whole(server, text={"format": shape, "verbosity": "low"})
    assert server.requests[-1].grammar is not None
    assert said["text"] == {"format": shape, "verbosity": "low"}
    whole(server, text={"format": {"type": "json_object"}})
    assert server.requests[-1].grammar is not None
    said = whole(server, text={"format": {"type": "text"}})
    assert server.requests[-1].grammar is None
    assert said["text"] == {"format": {"type": "text"}, "verbosity": "medium"}


def test_tools_and_choices_come_back(server: JackfieldServer) -> None:
    said = whole(server, tools=[LOOK, {"type": "web_search", "external_web_access": False}], parallel_tool_calls=False)
    assert said["tools"] == [{**LOOK, "strict": None}]
    assert (said["tool_choice"], said["parallel_tool_calls"]) == ("auto", False)
    assert '"look"' in prompt(server)
    assert "web_search" not in prompt(server)
    said = whole(server, tools=[LOOK], tool_choice="none")
    assert '"look"' not in prompt(server)
    choice = {"type": "function", "name": "look"}
    said = whole(server, tools=[LOOK], tool_choice=choice)
    assert said["tool_choice"] == choice
    assert server.requests[-1].grammar is not None


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_hide_the_others(server: JackfieldServer, mode: str) -> None:
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "look"}]}
    said = whole(server, tools=[LOOK, {"type": "function", "name": "burn"}], tool_choice=choice)
    assert said["tool_choice"] == choice
    assert '"look"' in prompt(server)
    assert '"burn"' not in prompt(server)
    # Otherwise a grammar begins where a call does.
    assert isinstance(server.requests[-1].grammar, TriggeredGrammars) == (mode == "auto")


def test_functions_of_a_namespace_are_called_by_both_names(server: JackfieldServer) -> None:
    tools = [{"type": "namespace", "name": "mcp__files__", "description": "Files.", "tools": [LOOK]}, LOOK]
    server.says('<tool_call>\n{"name": "mcp__files__look", "arguments": {}}\n</tool_call>' + CALL)
    said = whole(server, tools=tools)
    assert '"mcp__files__look"' in prompt(server)
    first, second = said["output"]
    assert (first["namespace"], first["name"]) == ("mcp__files__", "look")
    assert "namespace" not in second
    assert [tool["type"] for tool in said["tools"]] == ["namespace", "function"]
    whole(server, [{"role": "user", "content": "Hi"}, first], tools=tools)
    assert '{"name": "mcp__files__look", "arguments": {}}' in prompt(server)


def test_thoughts_go_back_to_the_model_in_the_best_form_there_is(server: JackfieldServer) -> None:
    from jackfield.api.responses.conversion import chat_request
    from jackfield.api.responses.toolbox import Toolbox
    from jackfield.protocol.responses.items import sealed
    from jackfield.protocol.responses.request import ResponseRequest

    summary = [{"type": "summary_text", "text": "short"}]
    content = [{"type": "reasoning_text", "text": "long"}]
    for item, expected in (
        ({"summary": summary, "content": content, "encrypted_content": sealed("sealed")}, "long"),
        ({"summary": summary, "encrypted_content": sealed("sealed")}, "sealed"),
        ({"summary": summary, "encrypted_content": "gAAAA"}, "short"),
    ):
        items = [
            {"type": "reasoning", **item},
            {"role": "assistant", "content": "So."},
            {"role": "user", "content": "?"},
        ]
        asked = ResponseRequest.model_validate({"model": "x", "input": items})
        assert not isinstance(asked.input, str)
        placed = [(f"input.{index}", one) for index, one in enumerate(asked.input)]
        chat, places = chat_request(asked, placed, Toolbox(asked))
        assert chat.messages[0].model_dump(exclude_unset=True) == {
            "role": "assistant",
            "reasoning_content": expected,
            "content": "So.",
        }
        assert places.messages == ["input.1.content", "input.2.content"]


def test_too_long_a_conversation_loses_its_beginning_if_it_may(jackfield_server: StartServer) -> None:
    server = jackfield_server(context_length=600)
    items = [{"role": "user", "content": f"{index} " + "word " * 20} for index in range(10)]
    items[3:3] = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
    ]
    error = refused(ask(server, items, instructions="Be brief."))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert "maximum context length is 600 tokens" in error["message"]
    said = whole(server, items, instructions="Be brief.", truncation="auto", max_output_tokens=50)
    assert said["truncation"] == "auto"
    assert "Be brief." in prompt(server)
    assert "9 word" in prompt(server)
    assert "0 word" not in prompt(server)
    assert 400 < len(server.requests[-1].prompt) <= 550
    refused(ask(server, "word " * 200, truncation="auto"))
    # What a function gave goes together with the call.
    long = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": json.dumps({"a": "x" * 500})},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
        {"role": "user", "content": "And?"},
    ]
    whole(server, long, truncation="auto")
    assert "found" not in prompt(server)
    assert "And?" in prompt(server)


# ---------------------------------------------------------------------------------------- what comes back


def test_a_stream_of_text_and_calls(server: JackfieldServer) -> None:
    server.says(f"Let me see.{CALL}\n{CALL}")
    found = events(ask(server, stream=True, tools=[LOOK]))
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert types(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        *call,
        *call,
        "completed",
    ]
    created, in_progress, *middle, completed = found
    for event in (created, in_progress, completed):
        validator("ResponseEvent").validate(event)
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["usage"], created["response"]["output"]) == (
        "in_progress",
        None,
        [],
    )
    done = [event["item"] for event in middle if event["type"] == "response.output_item.done"]
    assert completed["response"]["output"] == done
    assert [item["type"] for item in done] == ["message", "function_call", "function_call"]
    assert len({item["id"] for item in done}) == len({item["call_id"] for item in done[1:]}) + 1 == 3
    assert completed["response"]["status"] == "completed"
    assert completed["response"]["usage"]["output_tokens"] == len(f"Let me see.{CALL}\n{CALL}")


def test_a_stream_says_the_same_as_the_whole_answer(server: JackfieldServer) -> None:
    for _ in range(2):
        server.says("One, two.", cached_tokens=3)
    said = whole(server, seed=1)
    last = events(ask(server, seed=1, stream=True))[-1]["response"]
    for one in (said, last):
        assert one["id"].startswith("resp_")
        assert one["output"][0]["id"].startswith("msg_")
        one["id"] = one["output"][0]["id"] = one["created_at"] = one["completed_at"] = None
    assert said == last
    assert said["usage"] == {
        "input_tokens": len(server.requests[-1].prompt),
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(server.requests[-1].prompt) + 9,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_when_several_are_not_wanted(server: JackfieldServer, stream: bool) -> None:
    server.says(CALL + CALL)
    reply = ask(server, stream=stream, tools=[LOOK], parallel_tool_calls=False)
    said = events(reply)[-1]["response"] if stream else reply.json
    assert [item["type"] for item in said["output"]] == ["function_call"]
    assert said["status"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_too_long_is_incomplete(server: JackfieldServer, stream: bool) -> None:
    server.says("Hello there.")
    reply = ask(server, stream=stream, max_output_tokens=5)
    if stream:
        found = events(reply)
        assert types(found)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
        said = found[-1]["response"]
    else:
        said = reply.json
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said["completed_at"] is None
    (item,) = said["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hello")


@pytest.mark.parametrize("include", [["message.output_text.logprobs"], None])
def test_log_probabilities(server: JackfieldServer, include: list[str] | None) -> None:
    server.says("ab", logprob=[-0.1, -0.2])
    said = whole(server, include=include, top_logprobs=2)
    tokens = said["output"][0]["content"][0]["logprobs"]
    assert [(one["token"], round(one["logprob"], 6), len(one["top_logprobs"])) for one in tokens] == [
        ("a", -0.1, 2),
        ("b", -0.2, 2),
    ]
    server.says("ab", logprob=[-0.1, -0.2])
    found = events(ask(server, stream=True, include=["message.output_text.logprobs"]))
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [(one["delta"], [t["token"] for t in one["logprobs"]]) for one in deltas] == [("a", ["a"]), ("b", ["b"])]
    assert deltas[0]["logprobs"][0]["top_logprobs"] == []


def test_what_the_request_said_comes_back(server: JackfieldServer) -> None:
    given = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_tool_calls": 3,
        "reasoning": {"effort": "low", "summary": "auto"},
        "prompt_cache_key": "key",
        "safety_identifier": "nobody",
        "user": "somebody",
    }
    said = whole(server, service_tier="flex", **given)
    assert {name: said[name] for name in given} == given
    assert (said["service_tier"], said["background"], said["store"]) == ("default", False, False)
    assert "user" not in whole(server)


def test_the_extension_rides_the_last_response(server: JackfieldServer) -> None:
    assert "jackfield" not in whole(server)
    said = whole(server, jackfield=True)
    validator("Extension").validate(said["jackfield"])
    found = events(ask(server, stream=True, jackfield=True))
    assert ["jackfield" in event.get("response", {}) for event in found].count(True) == 1
    assert found[-1]["response"]["jackfield"]["choices"][0]["ended_by"] == "stop"


# ---------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("The engine failed."), "server_error"), (QueueFullError(3), "rate_limit_exceeded")],
    ids=["engine", "queue"],
)
def test_a_stream_that_fails_before_its_first_text(server: JackfieldServer, error: Any, code: str) -> None:
    server.says("", error=error)
    found = events(ask(server, stream=True, store=True))
    assert types(found) == ["created", "in_progress", "error", "failed"]
    validator("ErrorEvent").validate(found[2])
    assert found[2]["error"] == error.envelope()["error"]
    assert (found[2]["code"], found[2]["message"]) == (error.error_code, error.message)
    failed = found[3]["response"]
    assert (failed["status"], failed["error"]) == ("failed", {"code": code, "message": error.message})
    assert (failed["usage"], failed["output"], failed["store"]) == (None, [], False)
    refused(server.get(f"/v1/responses/{failed['id']}"), 404)


def test_an_answer_that_fails_whole(server: JackfieldServer) -> None:
    server.says("Hel", error=EngineError("The engine failed.", suggestions=("Again.",)))
    assert refused(ask(server), 503)["code"] == "engine_error"
    server.says("", error=DeadlineExceededError())
    assert refused(ask(server), 504)["code"] == "deadline_exceeded"


def test_a_stream_that_fails_in_the_middle_ends_incomplete(server: JackfieldServer) -> None:
    server.says(f"Hello.{CALL}Hm", error=EngineError("The engine failed."))
    found = events(ask(server, stream=True, tools=[LOOK], jackfield=True))
    assert types(found)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    last = found[-1]["response"]
    assert [item["status"] for item in last["output"]] == ["completed", "completed", "incomplete"]
    assert last["jackfield"]["choices"][0]["ended_by"] == "error"
    assert last["usage"]["output_tokens"] == len(f"Hello.{CALL}Hm")


def test_a_request_whose_time_is_over_is_incomplete(server: JackfieldServer) -> None:
    server.says("Hello.", finish="timeout")
    assert whole(server, timeout=5)["status"] == "incomplete"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", "empty_array"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": [{"role": "robot", "content": ""}]}, "input.0.role", "invalid_value"),
        ({"input": [{"content": "Hi"}]}, "input.0.type", "missing_required_parameter"),
        ({"input": [{"type": "text", "text": "Hi"}]}, "input.0.type", "invalid_value"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type", "unsupported_value"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input", "empty_array"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "input.0.content.0.type", None),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.image_url",
            "missing_required_parameter",
        ),
        (
            {"input": ["a"]},
            "input.0",
            "invalid_type",
        ),
        (
            {"instructions": "x", "input": [{"role": "user", "content": [{"type": "input_file", "file_data": "f"}]}]},
            "input.0.content.0",
            "unsupported_value",
        ),
        (
            {
                "input": [
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [
                            {"type": "input_text", "text": "a"},
                            {"type": "input_image", "image_url": "data:image/png;base64,", "detail": "original"},
                        ],
                    }
                ]
            },
            "input.0.output.1",
            "unsupported_value",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id", "item_not_found"),
        ({"input": [{"id": "msg_1"}]}, "input.0.id", "item_not_found"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools.0.type", "unsupported_value"),
        ({"tools": [{"type": "mcp"}]}, "tools.0.type", "unsupported_value"),
        ({"tools": [{"type": "functoin"}]}, "tools.0.type", "invalid_value"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
            "tools.0.tools.0.type",
            "unsupported_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "x"}, "tools": [LOOK]}, "tool_choice.name", "invalid_value"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "unsupported_value"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
            "tool_choice.tools.0.name",
            "invalid_value",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no such"}}}},
            "text.format.schema",
            None,
        ),
        (
            {
                "tools": [
                    {"type": "web_search"},
                    {
                        "type": "namespace",
                        "name": "n",
                        "tools": [{**LOOK, "strict": True, "parameters": {"type": "no such"}}],
                    },
                ]
            },
            "tools.1.tools.0.parameters",
            None,
        ),
        ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "regex", "invalid_value"),
        ({"grammar": "start: nothing"}, "grammar", None),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"include": ["everything"]}, "include.0", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"response_format": {}}, "response_format", "unknown_parameter"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents", None),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_bad_requests_are_told_what_to_do(
    server: JackfieldServer, fields: dict[str, Any], param: str, code: str | None
) -> None:
    reply = server.post("/v1/responses", {"model": "scripted", "input": "Hi", **fields})
    assert reply.status == 400, reply.text
    validator("ErrorEnvelope").validate(reply.json)
    error = reply.json["error"]
    assert error["param"] == param
    assert code is None or error["code"] == code
    for word in ("messages.", "response_format.", "tools.0.function"):
        assert word not in error["message"]


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("messages", "'input'"),
        ("response_format", "'text'"),
        ("max_tokens", "'max_output_tokens'"),
        ("system", "'instructions'"),
        ("instructionz", "'instructions'"),
    ],
)
def test_fields_of_other_endpoints_are_told_their_names_here(server: JackfieldServer, field: str, hint: str) -> None:
    assert hint in refused(ask(server, **{field: "x"}))["suggestions"][0]


def test_searches_are_logged_as_ignored(server: JackfieldServer, caplog: pytest.LogCaptureFixture) -> None:
    from jackfield.api import body

    body._logged.clear()
    with caplog.at_level("INFO", "jackfield.api.body"):
        whole(server, tools=[{"type": "web_search"}, LOOK], text={"verbosity": "low"}, client_metadata={"a": "b"})
    said = "\n".join(record.getMessage() for record in caplog.records)
    for name in ("tools of type web_search", "text.verbosity", "client_metadata"):
        assert f"'{name}'" in said


# ---------------------------------------------------------------------------------------- what is stored


def test_nothing_is_stored_unless_it_is_asked_for(server: JackfieldServer, tmp_path: Path) -> None:
    for fields in ({}, {"store": False}, {"store": None}):
        said = whole(server, **fields)
        assert said["store"] is False
        error = refused(server.get(f"/v1/responses/{said['id']}"), 404)
        assert said["id"] in error["message"]
        error = refused(ask(server, previous_response_id=said["id"]))
        assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")
    assert not (tmp_path / "jackfield-data" / FILE).exists()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_is_found_again(server: JackfieldServer, stream: bool, tmp_path: Path) -> None:
    server.says("Hello.")
    reply = ask(server, store=True, stream=stream, metadata={"a": "b"})
    said = events(reply)[-1]["response"] if stream else reply.json
    assert said["store"] is True
    for prefix in ("/v1", ""):
        assert server.get(f"{prefix}/responses/{said['id']}").json == said
    assert (tmp_path / "jackfield-data" / FILE).stat().st_mode & 0o777 == 0o600
    assert server.request("DELETE", f"/v1/responses/{said['id']}").json == {
        "id": said["id"],
        "object": "response",
        "deleted": True,
    }
    refused(server.get(f"/v1/responses/{said['id']}"), 404)
    refused(server.request("DELETE", f"/v1/responses/{said['id']}"), 404)


def test_a_conversation_by_previous_responses(server: JackfieldServer) -> None:
    server.says(f"Wait.{CALL}")
    first = whole(server, "Who?", instructions="Be brief.", store=True, tools=[LOOK])
    call = first["output"][1]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Me."}
    server.says("Me.")
    second = whole(server, [output], previous_response_id=first["id"], store=True)
    assert second["previous_response_id"] == first["id"]
    assert second["instructions"] is None
    third = whole(server, "Where?", previous_response_id=second["id"])
    said = prompt(server)
    conversation = [
        {"role": "user", "content": "Who?"},
        {
            "role": "assistant",
            "content": "Wait.",
            "tool_calls": [
                {"id": call["call_id"], "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": call["call_id"], "content": "Me."},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Where?"},
    ]
    assert said == prompt_of(server, conversation)
    refused(server.get(f"/v1/responses/{third['id']}"), 404)
    # The chain is broken when one of its links is gone.
    server.request("DELETE", f"/v1/responses/{first['id']}")
    assert first["id"] in refused(ask(server, previous_response_id=second["id"]))["message"]
    assert server.get(f"/v1/responses/{second['id']}").status == 200


def test_items_may_be_referred_to(server: JackfieldServer) -> None:
    server.says(CALL)
    first = whole(server, "Who?", store=True, tools=[LOOK])
    (call,) = first["output"]
    items = [
        {"role": "user", "content": "Who?"},
        {"type": "item_reference", "id": call["id"]},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "Me."},
    ]
    whole(server, items)
    assert CALL in prompt(server)


def test_items_of_recent_answers_may_be_referred_to_unless_that_was_forbidden(server: JackfieldServer) -> None:
    for stream in (False, True):
        server.says(CALL)
        reply = ask(server, "Who?", tools=[LOOK], stream=stream)
        (call,) = (events(reply)[-1]["response"] if stream else reply.json)["output"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Me."}
        whole(server, [{"type": "item_reference", "id": call["id"]}, output])
        assert CALL in prompt(server)
    server.says(CALL)
    (call,) = whole(server, "Who?", tools=[LOOK], store=False)["output"]
    refused(ask(server, [{"type": "item_reference", "id": call["id"]}, output]))


def test_the_oldest_items_are_forgotten_first() -> None:
    recent = RecentItems(max_bytes=100)
    for name in "abc":
        recent.remember("alice", [{"id": name, "text": "x" * 20}])
    assert recent.find("alice", "abcd").keys() == {"b", "c"}
    assert recent.find("alice", "c") == {"c": {"id": "c", "text": "x" * 20}}
    assert recent.find("bob", "abc") == {}
    recent.remember("bob", [{"id": "d", "text": "x" * 200}])
    assert recent.find("alice", "abc") == recent.find("bob", "d") == {}


def test_items_page_by_page(server: JackfieldServer) -> None:
    server.says("Hello.")
    first = whole(server, "Hi", store=True)
    image = {"type": "input_text", "text": "What?"}
    items = [
        {"role": "user", "content": [image], "id": "msg_mine"},
        {"role": "assistant", "content": "That."},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
    ]
    second = whole(server, items, previous_response_id=first["id"], store=True)
    path = f"/v1/responses/{second['id']}/input_items"
    listed = server.get(f"{path}?order=asc").json
    validator("ItemList").validate(listed)
    kinds = [(item["type"], item.get("role"), item.get("status")) for item in listed["data"]]
    assert kinds == [
        ("message", "user", "completed"),
        ("message", "assistant", "completed"),
        ("message", "user", "completed"),
        ("message", "assistant", "completed"),
        ("reasoning", None, None),
        ("function_call", None, "completed"),
        ("function_call_output", None, "completed"),
    ]
    assert listed["data"][1] == first["output"][0]
    assert listed["data"][0]["content"] == [{"type": "input_text", "text": "Hi"}]
    assert listed["data"][3]["content"] == [{"type": "output_text", "text": "That.", "annotations": [], "logprobs": []}]
    assert listed["data"][2]["id"] == "msg_mine"
    ids = [item["id"] for item in listed["data"]]
    assert len(set(ids)) == 7
    assert [item["id"] for item in server.get(path).json["data"]] == ids[::-1]
    page = server.get(f"{path}?order=asc&limit=3").json
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (ids[:3], True)
    assert (page["first_id"], page["last_id"]) == (ids[0], ids[2])
    rest = server.get(f"{path}?order=asc&limit=4&after={ids[2]}").json
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (ids[3:], False)
    empty = server.get(f"{path}?order=asc&after={ids[-1]}").json
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("order=up", "order"),
        ("after=msg_2", "after"),
        ("before=msg_2", "before"),
    ],
)
def test_bad_pages(server: JackfieldServer, query: str, param: str) -> None:
    name = whole(server, store=True)["id"]
    assert refused(server.get(f"/v1/responses/{name}/input_items?{query}"))["param"] == param


def test_what_cannot_be_done_with_stored_responses(server: JackfieldServer) -> None:
    name = whole(server, store=True)["id"]
    assert refused(server.get(f"/v1/responses/{name}?stream=true"))["param"] == "stream"
    assert refused(server.get(f"/v1/responses/{name}?colour=red"))["param"] == "colour"
    assert server.get(f"/v1/responses/{name}?include[]=message.output_text.logprobs&stream=false").status == 200
    assert "background" in refused(server.post(f"/v1/responses/{name}/cancel"))["message"]
    refused(server.post("/v1/responses/resp_0/cancel"), 404)
    refused(server.get("/v1/responses/resp_0/input_items"), 404)
    for path in ("compact", "input_tokens", "nothing"):
        refused(server.post(f"/v1/responses/{path}", {}), 404)


def test_storing_may_be_the_default_or_off(jackfield_server: StartServer) -> None:
    server = jackfield_server(store_responses=True)
    assert whole(server)["store"] is True
    assert whole(server, store=False)["store"] is False
    server = jackfield_server(stored_responses_bytes=0)
    assert whole(server)["store"] is False
    assert refused(ask(server, store=True))["param"] == "store"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_stored_says_so(
    server: JackfieldServer, tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jackfield-data" / FILE).mkdir(parents=True)
    reply = ask(server, store=True, stream=stream)
    said = events(reply)[-1]["response"] if stream else reply.json
    assert (said["store"], said["status"]) == (False, "completed")
    assert "could not be stored" in caplog.text
    assert refused(server.get(f"/v1/responses/{said['id']}"), 503)["code"] == "unavailable"


class Doorman:
    """Knows people by their keys."""

    @hookimpl
    def authenticate(self, request: Any) -> Identity | None:
        name = request.headers.get("authorization", "").removeprefix("Bearer ")
        return Identity(name) if name else None


def test_everybody_finds_only_their_own(jackfield_server: StartServer) -> None:
    server = jackfield_server(("doorman", Doorman()))
    alice, bob = ({"Authorization": f"Bearer {name}"} for name in ("alice", "bob"))
    said = whole(server, store=True, headers=alice)
    (item,) = said["output"]
    path = f"/v1/responses/{said['id']}"
    assert server.get(path, headers=alice).status == 200
    refused(server.get(path, headers=bob), 404)
    refused(server.get(f"{path}/input_items", headers=bob), 404)
    refused(server.post(f"{path}/cancel", headers=bob), 404)
    refused(server.request("DELETE", path, headers=bob), 404)
    refused(ask(server, previous_response_id=said["id"], headers=bob))
    refused(ask(server, [{"type": "item_reference", "id": item["id"]}], headers=bob))
    assert server.get(path).status == 401
    assert server.get(path, headers=alice).status == 200


# ---------------------------------------------------------------------------------------- plugins


class Meddler:
    """Changes whatever it can."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    @hookimpl
    def transform_request(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return {**body, "instructions": "Be kind."}

    @hookimpl
    def transform_response(self, response: dict[str, Any]) -> dict[str, Any]:
        response["output"][0]["content"][0]["text"] += "!"
        return response

    @hookimpl
    def transform_delta(self, delta: Any) -> Any:
        return type(delta)(delta.choice, delta.text.upper())


def test_plugins_have_their_say(jackfield_server: StartServer) -> None:
    meddler = Meddler()
    server = jackfield_server(("meddler", meddler))
    server.says("Hello")
    said = whole(server, store=True)
    assert said["output"][0]["content"][0]["text"] == "Hello!"
    assert said["instructions"] == "Be kind."
    assert "Be kind." in prompt(server)
    assert meddler.bodies == [{"model": "scripted", "input": "Hi", "store": True}]
    assert server.get(f"/v1/responses/{said['id']}").json == said
    server.says("Hello")
    found = events(ask(server, stream=True))
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "HELLO"
    assert "".join(event.get("delta", "") for event in found) == "HELLO"


class Shortener:
    """Keeps the last message."""

    @hookimpl
    def compress_context(self, messages: list[dict[str, Any]]) -> Compressed:
        return Compressed(messages[-1:])


def test_long_conversations_are_compressed(jackfield_server: StartServer) -> None:
    server = jackfield_server(("shortener", Shortener()), context_length=600)
    said = whole(
        server, [{"role": "user", "content": "word " * 200}, {"role": "user", "content": "Hi"}], jackfield=True
    )
    assert said["jackfield"]["compression"]["plugin"] == "shortener"
    assert "word" not in prompt(server)


class Parrot:
    """Answers by itself."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    @hookimpl
    def register_backends(self, register: Any) -> None:
        register("parrot", lambda _: self)

    @hookimpl
    def select_backend(self) -> str:
        return "parrot"

    def serves(self, request: Any) -> bool:
        return True

    async def answer(self, request: Any, body: dict[str, Any]) -> AsyncIterator[str]:
        self.bodies.append(body)
        yield body["messages"][-1]["content"]


def test_backends_get_the_words_they_know(jackfield_server: StartServer) -> None:
    parrot = Parrot()
    server = jackfield_server(("parrot", parrot))
    said = whole(server, "Hi", instructions="Be brief.", max_output_tokens=7)
    assert said["output"][0]["content"][0]["text"] == "Hi"
    (body,) = parrot.bodies
    assert body == {
        "model": "scripted",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 7,
    }


def test_what_is_logged_of_a_request(server: JackfieldServer) -> None:
    said = ask(server, [{"role": "user", "content": "secret"}], tools=[LOOK])
    record = server.record("received", said.request_id)
    assert (record.data["messages"], record.data["roles"], record.data["tools"]) == (1, {"user": 1}, 1)
    assert record.request.endpoint == "/responses"
    assert "secret" not in repr(record)
    assert server.record("completed", said.request_id).data["finish_reasons"] == ["stop"]
