"""``/v1/responses`` with the official Python SDK, strictly checked, against the real starter model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from serving import Server, serve

CAPITAL = "What is the capital of France? Answer in one sentence."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(starter_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=starter_server.api, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def ask(client: OpenAI, said: Any = CAPITAL, **fields: Any) -> Any:
    return client.responses.create(**{"model": "starter", "input": said, "temperature": 0, **fields})


def test_it_knows_the_capital_of_france(client: OpenAI) -> None:
    response = ask(client)
    assert "Paris" in response.output_text
    assert (response.status, response.temperature) == ("completed", 0)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_stream_says_the_same_as_the_whole_answer(client: OpenAI) -> None:
    events = list(ask(client, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == ask(client).output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_the_streaming_helper_puts_everything_together(client: OpenAI) -> None:
    with client.responses.stream(model="starter", input=CAPITAL, temperature=0) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == snapshots[-1] == ask(client).output_text


def test_an_async_stream(starter_server: Server) -> None:
    async def collect() -> str:
        async with (
            AsyncOpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as client,
            client.responses.stream(model="starter", input=CAPITAL, temperature=0) as stream,
        ):
            return (await stream.get_final_response()).output_text

    assert "Paris" in asyncio.run(collect())


class City(BaseModel):
    """What the model must say."""

    name: Literal["Paris", "Rome"]
    capital: bool


def test_an_answer_is_parsed(client: OpenAI) -> None:
    response = client.responses.parse(model="starter", input="Describe Paris.", text_format=City, max_output_tokens=60)
    assert isinstance(response.output_parsed, City)
    with client.responses.stream(
        model="starter", input="Describe Paris.", text_format=City, max_output_tokens=60
    ) as stream:
        streamed = stream.get_final_response()
    assert isinstance(streamed.output_parsed, City)


def test_a_call_and_what_it_gave(client: OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    response = ask(client, items, tools=[WEATHER], tool_choice="required", max_output_tokens=60)
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments)["city"] in {"Paris", "Rome"}
    items += response.output
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 21 degrees."})
    again = ask(client, items, tools=[WEATHER], tool_choice="none", max_output_tokens=40)
    assert again.output_text


def test_a_streamed_call(client: OpenAI) -> None:
    with client.responses.stream(
        model="starter",
        input="What is the weather in Paris?",
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "get_weather"},
        max_output_tokens=60,
    ) as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output
    arguments = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert arguments[-1] == call.arguments
    assert len(arguments) > 2
    assert call.parsed_arguments["city"] in {"Paris", "Rome"}


def test_log_probabilities_are_of_the_text(client: OpenAI) -> None:
    response = ask(client, include=["message.output_text.logprobs"], top_logprobs=3, max_output_tokens=12)
    part = response.output[0].content[0]
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == part.text
    assert all(len(token.top_logprobs) == 3 for token in part.logprobs)
    events = list(ask(client, include=["message.output_text.logprobs"], max_output_tokens=12, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(token.token for event in deltas for token in event.logprobs) == part.text


def test_stored_responses(client: OpenAI) -> None:
    first = ask(client, "My name is Alice.", store=True, max_output_tokens=20)
    assert client.responses.retrieve(first.id) == first
    second = ask(client, "What is my name?", previous_response_id=first.id, store=True, max_output_tokens=20)
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    items = list(client.responses.input_items.list(second.id, limit=2, order="asc"))
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    assert items[1].content[0].text == first.output_text
    assert [item.id for item in client.responses.input_items.list(second.id)] == [item.id for item in items][::-1]
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "And now?", previous_response_id=second.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_an_answer_that_is_cut_off(client: OpenAI) -> None:
    response = ask(client, "Count from 1 to 50.", max_output_tokens=5)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 5
    events = list(ask(client, "Count from 1 to 50.", max_output_tokens=5, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == response.output_text


def test_what_is_stored_outlives_the_server(tiny_model: Any, tmp_path: Any) -> None:
    environment = {"JACKFIELD_DATA_DIR": str(tmp_path)}
    with serve(tiny_model, **environment) as server, OpenAI(base_url=server.api, api_key="any") as client:
        model = server.model
        first = client.responses.create(model=model, input="Hi", store=True, max_output_tokens=4)
    with serve(tiny_model, **environment) as server, OpenAI(base_url=server.api, api_key="any") as client:
        assert client.responses.retrieve(first.id).output == first.output
        assert client.responses.create(model=model, input="Hi", previous_response_id=first.id, max_output_tokens=4)


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gpt-99", input="Hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "hello " * 9000, stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.BadRequestError) as tools:
        ask(client, tools=[{"type": "file_search", "vector_store_ids": ["v"]}])
    assert tools.value.param == "tools.0.type"


def test_fields_that_real_clients_send(client: OpenAI) -> None:
    response = client.responses.create(
        model="starter",
        instructions="You are a coding assistant.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        ],
        tools=[
            {**WEATHER, "strict": False},
            {"type": "web_search", "external_web_access": False},
            {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [{**WEATHER, "name": "spawn"}]},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="0199",
        text={"verbosity": "low"},
        max_output_tokens=4,
        extra_body={"client_metadata": {"installation": "x"}, "previous_response_id": None},
    )
    assert response.usage.output_tokens <= 4
    assert [tool.type for tool in response.tools] == ["function", "namespace"]
