"""Tool calls and structured output of the real starter model, which is far too small to get them right by itself."""

import json
import re
from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator
from openai import BadRequestError, OpenAI, OpenAIError

from serving import Server

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
}


def tool(name: str, parameters: dict, **more: object) -> dict:
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters, **more}}


TOOLS = [tool("get_weather", WEATHER), tool("get_time", {"type": "object", "properties": {}})]
QUESTION = [{"role": "user", "content": "How is the weather in Rome?"}]


@pytest.fixture(scope="module")
def client(starter_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as client:
        yield client


def ask(client: OpenAI, messages: list = QUESTION, **fields: object):
    settings = {"model": "starter", "messages": messages, "temperature": 0, "max_tokens": 120, **fields}
    return client.chat.completions.create(**settings)


def called(name: str, arguments: dict, number: int) -> list[dict]:
    """A call of an earlier turn, and its result."""
    call_id = f"call_{number}"
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "21 degrees"},
    ]


def in_the_habit_of_calling(question: str) -> list[dict]:
    """A conversation that even the smallest model goes on with by another call."""
    conversation = []
    for number, city in enumerate(["Paris", "Oslo", "Paris", "Oslo"]):
        conversation += [{"role": "user", "content": f"How is the weather in {city}?"}]
        conversation += called("get_weather", {"city": city}, number)
        conversation += [{"role": "assistant", "content": f"In {city} it is 21 degrees."}]
    return [*conversation, {"role": "user", "content": question}]


def test_a_call_that_the_model_begins_by_itself_fits_its_schema(client: OpenAI) -> None:
    conversation = in_the_habit_of_calling("How is the weather in Rome?")
    answer = ask(client, conversation, tools=TOOLS).choices[0]
    assert answer.finish_reason == "tool_calls"
    for call in answer.message.tool_calls:
        Draft202012Validator(WEATHER).validate(json.loads(call.function.arguments))


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_arguments_stream_as_they_are_written(client: OpenAI, choice: str) -> None:
    conversation = in_the_habit_of_calling("How is the weather in Rome?")
    chunks = list(ask(client, conversation, tools=TOOLS, tool_choice=choice, stream=True, parallel_tool_calls=False))
    first, *more = [call for chunk in chunks for c in chunk.choices for call in c.delta.tool_calls or ()]
    assert (first.index, first.function.name, first.function.arguments) == (0, "get_weather", "")
    assert first.id.startswith("call_")
    assert len(more) >= 4, "not all at once"
    assert all((call.index, call.id, call.function.name) == (0, None, None) for call in more)
    Draft202012Validator(WEATHER).validate(json.loads("".join(call.function.arguments for call in more)))
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["tool_calls"]


def test_streamed_and_whole_answers_say_the_same(client: OpenAI) -> None:
    conversation = in_the_habit_of_calling("How is the weather in Rome?")
    fields = {"tools": TOOLS, "temperature": 0.8, "seed": 5}
    whole = ask(client, conversation, **fields).choices[0]
    text, calls = "", {}
    for chunk in ask(client, conversation, stream=True, **fields):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for call in delta.tool_calls or ():
            calls[call.index] = calls.get(call.index, "") + (call.function.name or "") + (call.function.arguments or "")
    assert text == (whole.message.content or "")
    assert list(calls.values()) == [c.function.name + c.function.arguments for c in whole.message.tool_calls or ()]


def test_the_named_function_is_called_though_another_fits_better(client: OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    (call,) = ask(client, tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})


def test_required_is_one_call_unless_several_are_welcome(client: OpenAI) -> None:
    choosing = {"tools": TOOLS, "tool_choice": "required", "temperature": 1, "seed": 0, "n": 3}
    for answer in ask(client, **choosing).choices:
        assert len(answer.message.tool_calls) == 1
    for answer in ask(client, **choosing, parallel_tool_calls=True, max_tokens=50).choices:
        assert answer.message.tool_calls


def test_with_none_nothing_is_called(client: OpenAI) -> None:
    answer = ask(client, in_the_habit_of_calling("And Rome?"), tools=TOOLS, tool_choice="none").choices[0]
    assert answer.message.tool_calls is None


def test_a_call_that_is_cut_is_not_whole_and_says_so(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"story": {"type": "string", "minLength": 400}}, "required": ["story"]}
    answer = ask(client, tools=[tool("tell", schema)], tool_choice="required", max_tokens=50).choices[0]
    assert answer.finish_reason == "length"
    (call,) = answer.message.tool_calls
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(call.function.arguments)


IMPOSSIBLE = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"strict": True}], ids=["required", "strict"])
def test_a_schema_that_cannot_be_enforced_is_refused_where_it_has_to_be(client: OpenAI, fields: dict) -> None:
    strict = fields.pop("strict", None)
    with pytest.raises(BadRequestError, match="uniqueItems") as caught:
        ask(client, tools=[TOOLS[0], tool("f", IMPOSSIBLE, strict=strict)], **fields)
    assert (caught.value.code, caught.value.param) == ("invalid_grammar", "tools.1.function.parameters")


def test_otherwise_the_model_may_call_as_it_likes(client: OpenAI) -> None:
    answer = ask(client, tools=[tool("f", IMPOSSIBLE)], max_tokens=5).choices[0]
    assert answer.finish_reason in {"length", "stop"}


def test_tools_and_a_format_are_a_call_or_that_format(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"celsius": {"type": "integer"}}, "required": ["celsius"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    outcomes = set()
    for answer in ask(client, tools=TOOLS, response_format=wanted, temperature=1.5, seed=1, n=6, max_tokens=40).choices:
        if answer.finish_reason == "tool_calls":
            outcomes.add("call")
            assert {call.function.name for call in answer.message.tool_calls} <= {"get_weather", "get_time"}
        elif answer.finish_reason == "stop":
            outcomes.add("format")
            Draft202012Validator(schema).validate(json.loads(answer.message.content))
    assert outcomes


def test_an_answer_matches_a_regular_expression(client: OpenAI) -> None:
    answer = ask(client, extra_body={"regex": "(It is|Perhaps) [0-9]{2} degrees\\."}).choices[0]
    assert re.fullmatch(r"(It is|Perhaps) \d\d degrees\.", answer.message.content)
    assert answer.finish_reason == "stop"


def test_so_does_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(
        model="starter", prompt="2 + 2 =", max_tokens=20, temperature=0, extra_body={"regex": " [0-9]"}
    )
    assert re.fullmatch(r" \d", answer.choices[0].text)


GRAMMAR = """\
start: greeting " " NAME
greeting: "Hello," | "Bye,"
NAME: "Ada" | "Grace"
"""


def test_an_answer_is_what_a_grammar_says(client: OpenAI) -> None:
    answer = ask(client, extra_body={"grammar": GRAMMAR}).choices[0]
    assert answer.message.content in {f"{one}, {name}" for one in ("Hello", "Bye") for name in ("Ada", "Grace")}


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"regex": "(?=a)b"}, "regex", "look-around"),
        ({"grammar": "start: nobody"}, "grammar", "nobody"),
        ({"regex": "a", "grammar": GRAMMAR}, "grammar", "regex"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex", "response_format"),
    ],
)
def test_forms_that_cannot_be_are_refused(client: OpenAI, fields: dict, param: str, named: str) -> None:
    with pytest.raises(BadRequestError, match=re.escape(named)) as caught:
        ask(client, extra_body=fields)
    assert caught.value.param == param


def test_a_union_that_is_told_apart_by_a_constant_is_enforced(client: OpenAI) -> None:
    common = {"type": "object", "required": ["kind", "size"]}
    kinds = [{"kind": {"const": kind}, "size": {"type": "integer"}} for kind in ("circle", "square")]
    shapes = [{**common, "properties": properties} for properties in kinds]
    schema = {"type": "object", "properties": {"shape": {"oneOf": shapes}}, "required": ["shape"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "drawing", "schema": schema, "strict": True}}
    answer = ask(client, response_format=wanted, max_tokens=60).choices[0]
    Draft202012Validator(schema).validate(json.loads(answer.message.content))


def test_each_choice_has_calls_of_its_own(client: OpenAI) -> None:
    answer = ask(client, tools=TOOLS, tool_choice="required", n=2, temperature=1, seed=1)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(ids) == len(set(ids)) == 2


def test_many_tools_are_no_trouble(tiny_server: Server) -> None:
    tools = [tool(f"tool_{number}", WEATHER) for number in range(40)]
    with OpenAI(base_url=tiny_server.api, api_key="any", max_retries=0) as client:
        asked = {"model": tiny_server.model, "messages": [{"role": "user", "content": "Hi"}], "tools": tools}
        answer = ask(client, **asked, tool_choice={"type": "function", "function": {"name": "tool_39"}})
        assert answer.choices[0].message.tool_calls[0].function.name == "tool_39"
        with pytest.raises(OpenAIError):
            ask(client, **asked, tool_choice={"type": "function", "function": {"name": "tool_40"}})
