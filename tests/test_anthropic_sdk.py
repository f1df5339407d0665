"""The official Anthropic SDK against the real starter model."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from serving import Server, serve

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
COLOUR = {
    "name": "paint",
    "description": "Paint the wall.",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
    },
}


class City(BaseModel):
    name: str
    large: bool


@pytest.fixture(scope="module")
def client(starter_server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=starter_server.url, api_key="any", max_retries=0) as client:
        yield client


def create(client: Anthropic, **fields: Any) -> anthropic.types.Message:
    # The SDK has no argument for the temperature any more; it is still a field.
    whole = {"model": "starter", "max_tokens": 64, "messages": QUESTION, "extra_body": {"temperature": 0}, **fields}
    return client.messages.create(**whole)


def test_it_knows_the_capital_of_france(client: Anthropic) -> None:
    said = create(client)
    (block,) = said.content
    assert "Paris" in block.text
    assert said.stop_reason == "end_turn"
    assert said.usage.input_tokens + said.usage.cache_read_input_tokens > 10
    assert said._request_id.startswith("req_")


def test_a_stream_adds_up_to_the_same(client: Anthropic) -> None:
    whole = create(client, max_tokens=64)
    fields = {"model": "starter", "max_tokens": 64, "messages": QUESTION, "extra_body": {"temperature": 0}}
    with client.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert stream.request_id.startswith("req_")


def test_raw_events(client: Anthropic) -> None:
    events = list(create(client, stream=True, max_tokens=3))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2].delta.stop_reason == "max_tokens"


def test_the_asynchronous_client(starter_server: Server) -> None:
    async def ask() -> str:
        async with (
            AsyncAnthropic(base_url=starter_server.url, api_key="any", max_retries=0) as client,
            client.messages.stream(model="starter", max_tokens=8, messages=QUESTION) as stream,
        ):
            return "".join([piece async for piece in stream.text_stream])

    assert asyncio.run(ask())


def test_a_stop_sequence(client: Anthropic) -> None:
    said = create(client, stop_sequences=["Paris"])
    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in said.content[0].text


def test_tools_there_and_back(client: Anthropic) -> None:
    asked = [{"role": "user", "content": "Paint the wall, please."}]
    said = create(client, messages=asked, tools=[COLOUR], tool_choice={"type": "any"}, max_tokens=200)
    (call,) = said.content
    assert (call.type, call.name, said.stop_reason) == ("tool_use", "paint", "tool_use")
    assert call.input["colour"] in {"red", "blue"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "The wall is painted."}
    turns = [*asked, said.to_param(), {"role": "user", "content": [result]}]
    again = create(client, messages=turns, tools=[COLOUR])
    assert again.content[0].type == "text"
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens > said.usage.input_tokens


def test_tools_stream(client: Anthropic) -> None:
    choice = {"type": "tool", "name": "paint"}
    fields = {"model": "starter", "max_tokens": 200, "messages": QUESTION, "tools": [COLOUR], "tool_choice": choice}
    with client.messages.stream(**fields) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        (call,) = stream.get_final_message().content
    assert pieces
    assert call.input["colour"] in {"red", "blue"}


def test_structured_outputs(client: Anthropic) -> None:
    said = client.messages.parse(model="starter", max_tokens=200, messages=QUESTION, output_format=City)
    assert isinstance(said.parsed_output, City)


def test_a_prefilled_answer_goes_on(client: Anthropic) -> None:
    begun = {"role": "assistant", "content": "The capital of France is"}
    said = create(client, messages=[*QUESTION, begun])
    assert said.content[0].text.startswith(" Paris")


def test_the_beta_client(client: Anthropic) -> None:
    said = client.beta.messages.create(
        model="starter",
        max_tokens=8,
        messages=QUESTION,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        extra_body={"brand_new": True},
    )
    assert said.content[0].type == "text"


def test_tokens_are_counted(client: Anthropic) -> None:
    fields = {"model": "starter", "messages": QUESTION, "system": "Be brief.", "tools": [COLOUR]}
    counted = client.messages.count_tokens(**fields).input_tokens
    usage = create(client, **fields).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_what_the_prefix_cache_gave_is_counted_apart(client: Anthropic) -> None:
    long = [{"role": "user", "content": "Count with me: " + " ".join(map(str, range(200)))}]
    first, second = (create(client, messages=long, max_tokens=1).usage for _ in range(2))
    assert second.cache_read_input_tokens > first.cache_read_input_tokens
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens + first.cache_read_input_tokens


def test_models(client: Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.max_input_tokens) == ("starter", "model", 8192)
    again = client.models.retrieve("starter")
    assert (again.display_name, again.created_at) == (model.display_name, model.created_at)


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "claude-opus-4-6"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, anthropic.BadRequestError, "invalid_request_error"),
    ],
    ids=["wrong", "unknown", "long"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks(
    client: Anthropic, fields: dict[str, Any], kind: type[anthropic.APIStatusError], said: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        create(client, stream=stream, **fields)
    error = caught.value
    assert error.type == said
    assert error.error_code
    assert error.request_id.startswith("req_")
    assert error.body["error"]["suggestions"]


def test_a_full_queue_and_a_passed_limit(tiny_model: Path) -> None:
    with (
        serve(tiny_model, JACKFIELD_MAX_QUEUE="0", JACKFIELD_MAX_BATCH="1") as server,
        Anthropic(base_url=server.url, api_key="any", max_retries=0) as client,
    ):
        fields: dict[str, Any] = {"model": server.model, "max_tokens": 4000, "messages": QUESTION}
        with client.messages.create(**fields, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(anthropic.RateLimitError) as full:
                client.messages.create(**fields)
        assert full.value.type == "rate_limit_error"
        assert full.value.response.headers["retry-after"]
        with pytest.raises(anthropic.GatewayTimeoutError) as late:
            client.messages.create(**fields, extra_body={"timeout": 1e-6})
        assert late.value.type == "timeout_error"
