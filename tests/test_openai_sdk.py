"""The official Python SDK against the real starter model."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from jackfield.models.tokenizer import Tokenizer
from serving import Server

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
COUNT = [{"role": "user", "content": "Count from 1 to 50."}]


@pytest.fixture(scope="module")
def client(starter_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=starter_server.api, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(starter: Path) -> Tokenizer:
    return Tokenizer(starter)


def ask(client: OpenAI, messages=CAPITAL, **fields):
    return client.chat.completions.create(**{"model": "starter", "messages": messages, "temperature": 0, **fields})


def stream(client: OpenAI, messages=CAPITAL, **fields) -> list:
    return list(ask(client, messages, stream=True, **fields))


def text_of(chunks: list, index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def finish_of(chunks: list, index: int = 0) -> list:
    return [c.finish_reason for chunk in chunks for c in chunk.choices if c.index == index and c.finish_reason]


def test_it_knows_the_capital_of_france(client):
    completion = ask(client)
    choice = completion.choices[0]
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_a_stream_says_the_same_as_the_whole_answer(client):
    chunks = stream(client)
    assert text_of(chunks) == ask(client).choices[0].message.content
    assert finish_of(chunks) == ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_in_the_last_chunk_when_asked_for(client):
    *chunks, last = stream(client, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == ask(client).usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    assert all(chunk.usage is None for chunk in chunks)


def test_many_at_once_get_what_each_gets_alone(client, starter_server):
    questions = [[{"role": "user", "content": f"What is {topic}?"}] for topic in ("rain", "a prime", "Rust", "jazz")]

    async def gather() -> list[str]:
        async with AsyncOpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as together:
            asked = [
                together.chat.completions.create(model="starter", messages=messages, temperature=0, max_tokens=20)
                for messages in questions
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    alone = [ask(client, messages, max_tokens=20).choices[0].message.content for messages in questions]
    assert asyncio.run(gather()) == alone


def test_an_async_stream(starter_server):
    async def collect() -> str:
        async with AsyncOpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as client:
            chunks = await client.chat.completions.create(model="starter", messages=CAPITAL, temperature=0, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in chunks])

    assert "Paris" in asyncio.run(collect())


def test_the_same_seed_gives_the_same_text_in_any_company(client, starter_server):
    def story(**fields):
        messages = [{"role": "user", "content": "Tell me a story about a fox."}]
        return ask(client, messages, temperature=1.2, top_p=0.95, max_tokens=24, **fields).choices[0].message.content

    async def in_company() -> str:
        async with AsyncOpenAI(base_url=starter_server.api, api_key="any", max_retries=0) as others:
            streams = [
                await others.chat.completions.create(
                    model="starter", messages=COUNT, max_tokens=30, seed=i, stream=True
                )
                for i in range(3)
            ]
            for one in streams:
                await anext(aiter(one))
            text = await asyncio.to_thread(story, seed=42)
            for one in streams:
                assert [chunk async for chunk in one]
            return text

    alone = story(seed=42)
    assert story(seed=42) == alone
    assert asyncio.run(in_company()) == alone
    assert len({story(seed=seed) for seed in range(3)}) == 3


@pytest.fixture(scope="module")
def whole(client) -> str:
    return ask(client, COUNT, max_tokens=30).choices[0].message.content


@pytest.mark.parametrize("stop", ["4", ["nothing like it", " 5", "\n5"], "3\n4", "\n4"])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client, whole, stop):
    cut = min(whole.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in whole)
    completion = ask(client, COUNT, max_tokens=30, stop=stop)
    assert completion.choices[0].message.content == whole[:cut]
    chunks = stream(client, COUNT, max_tokens=30, stop=stop, stream_options={"include_usage": True})
    assert text_of(chunks) == whole[:cut]
    assert finish_of(chunks) == ["stop"]
    # Generation really ended: not many more tokens than the text has.
    assert chunks[-1].usage.completion_tokens <= cut + 6


def test_max_tokens_is_exact_under_both_names(client):
    for field in ("max_tokens", "max_completion_tokens"):
        completion = ask(client, COUNT, **{field: 7})
        assert completion.usage.completion_tokens == 7
        assert completion.choices[0].finish_reason == "length"


def test_several_choices_differ_and_their_prompt_counts_once(client):
    completion = ask(client, n=3, temperature=1.5, seed=5, max_tokens=12)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) > 1
    assert completion.usage.prompt_tokens == ask(client, max_tokens=1).usage.prompt_tokens
    chunks = stream(client, n=3, temperature=1.5, seed=5, max_tokens=12)
    for choice in completion.choices:
        assert text_of(chunks, choice.index) == choice.message.content
        assert finish_of(chunks, choice.index) == [choice.finish_reason]


def test_log_probabilities_are_of_the_tokens_sent(client):
    choice = ask(client, logprobs=True, top_logprobs=5, max_tokens=12).choices[0]
    assert b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        # Greedy: the token sent is the most likely one.
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert len(token.top_logprobs) == 5
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_log_probabilities_in_a_stream_are_the_same(client):
    whole = ask(client, logprobs=True, top_logprobs=2, max_tokens=12).choices[0].logprobs.content
    chunks = stream(client, logprobs=True, top_logprobs=2, max_tokens=12)
    streamed = [t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in whole]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in whole], abs=1e-3)
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.logprobs:
                said = b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode()
                assert said == choice.delta.content


def test_logit_bias_can_forbid_and_force(client, tokenizer):
    first = ask(client, COUNT, logprobs=True, max_tokens=1).choices[0]
    assert first.message.content
    prompt = "The capital of France is"
    plain = client.completions.create(model="starter", prompt=prompt, max_tokens=1, temperature=0, logprobs=1)
    assert plain.choices[0].text == " Paris"
    paris = token_id(tokenizer, " Paris")
    banned = client.completions.create(
        model="starter", prompt=prompt, max_tokens=1, temperature=0, logit_bias={str(paris): -100}
    )
    assert banned.choices[0].text != " Paris"
    forced = client.completions.create(
        model="starter", prompt="Two plus two is", max_tokens=3, temperature=0, logit_bias={str(paris): 100}
    )
    assert forced.choices[0].text == " Paris Paris Paris"


def token_id(tokenizer: Tokenizer, text: str) -> int:
    (token,) = tokenizer.encode(text)
    return token


def test_penalties_make_repetition_rarer(client):
    def most_frequent(**fields) -> int:
        content = ask(client, COUNT, max_tokens=32, logprobs=True, **fields).choices[0].logprobs.content
        return Counter(token.token for token in content).most_common(1)[0][1]

    plain = most_frequent()
    assert plain > 5
    assert most_frequent(frequency_penalty=2) < plain
    assert most_frequent(extra_body={"repetition_penalty": 1.5}) < plain


def test_greedy_ignores_top_k_and_friends_and_narrow_sampling_is_greedy(client):
    greedy = ask(client, max_tokens=10).choices[0].message.content
    narrow = [{"extra_body": {"top_k": 1}}, {"top_p": 1e-6}, {"extra_body": {"min_p": 1.0}}]
    for fields in narrow:
        assert ask(client, temperature=1.5, max_tokens=10, **fields).choices[0].message.content == greedy


def test_the_second_turn_finds_the_first_in_the_cache(client):
    first = ask(client, COUNT, max_tokens=60)
    messages = [*COUNT, {"role": "assistant", "content": first.choices[0].message.content}]
    second = ask(client, [*messages, {"role": "user", "content": "Go on."}], max_tokens=5)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens < cached < second.usage.prompt_tokens
    new = ask(client, [{"role": "system", "content": "Something nobody has said before."}, *COUNT], max_tokens=1)
    assert new.usage.prompt_tokens_details.cached_tokens == 0


def test_fields_that_real_clients_send(client):
    completion = client.chat.completions.create(
        model="starter",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": None, "tool_calls": [_call("lookup", '{"a": 1}')]},
            {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        ],
        user="somebody",
        metadata={"a": "b"},
        stop=None,
        temperature=None,
        top_p=None,
        max_tokens=None,
        max_completion_tokens=4,
        logit_bias=None,
        response_format=None,
        seed=None,
        n=None,
    )
    assert completion.usage.completion_tokens == 4


def _call(name: str, arguments: str) -> dict:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_an_unknown_model_is_404_and_disturbs_nobody(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-99", messages=CAPITAL)
    assert caught.value.code == "model_not_found"
    assert "starter" in caught.value.body["suggestions"][0]
    assert "Paris" in ask(client).choices[0].message.content


def test_a_prompt_longer_than_the_context(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "hello " * 9000}])
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in caught.value.message
    assert caught.value.body["suggestions"]


def test_more_tokens_than_the_context_leaves_are_clamped(client):
    completion = ask(client, max_tokens=32_000)
    assert "Paris" in completion.choices[0].message.content


def test_models_are_listed(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    assert model.context_length == 8192
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-99")


def test_text_completions_echo_their_prompt_with_log_probabilities(client):
    # The SDK's types know no null for the first token, though OpenAI sends one; so without strict validation.
    lenient = OpenAI(base_url=client.base_url, api_key="any", max_retries=0)
    completion = lenient.completions.create(
        model="starter", prompt="The capital of France is", echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    choice = completion.choices[0]
    assert choice.text == "The capital of France is Paris"
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    for at, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert choice.text[at:].startswith(token)
    assert choice.logprobs.token_logprobs[-1] == max(choice.logprobs.top_logprobs[-1].values())


def test_several_prompts_and_choices_in_order(client):
    prompts = ["The capital of France is", "The capital of Italy is"]
    completion = client.completions.create(model="starter", prompt=prompts, n=2, max_tokens=1, temperature=0)
    assert [choice.text for choice in completion.choices] == [" Paris", " Paris", " Rome", " Rome"]
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(
        model="starter", prompt=prompts, n=2, max_tokens=1, temperature=0, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [" Paris", " Paris", " Rome", " Rome"]


def test_each_prompt_counts_once_for_all_its_choices(client):
    def counted(prompts, **fields) -> int:
        return client.completions.create(model="starter", prompt=prompts, max_tokens=1, **fields).usage.prompt_tokens

    one = counted("The capital of France is")
    assert counted(["The capital of France is"] * 2) == 2 * one
    assert counted(["The capital of France is"] * 2, n=2) == 2 * one


def test_token_ids_as_prompt(client, tokenizer):
    tokens = [token_id(tokenizer, word) for word in ("The", " capital", " of", " France", " is")]
    completion = client.completions.create(model="starter", prompt=tokens, max_tokens=1, temperature=0)
    assert completion.choices[0].text == " Paris"
    assert completion.usage.prompt_tokens == 5
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="starter", prompt=[99_999_999])


def test_a_schema_holds_even_the_smallest_model(client):
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999},
        },
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    choice = ask(
        client,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
        temperature=1,
        max_tokens=60,
    ).choices[0]
    assert set(json.loads(choice.message.content)) == {"city", "population"}
    assert choice.finish_reason == "stop"


def test_a_required_tool_is_called(client):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                    "required": ["city"],
                },
            },
        }
    ]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = ask(client, tools=tools, tool_choice=choice, temperature=1, max_tokens=60).choices[0]
        (call,) = answer.message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}
        assert answer.finish_reason == "tool_calls"
        chunks = stream(client, tools=tools, tool_choice=choice, max_tokens=60)
        assert finish_of(chunks) == ["tool_calls"]
        first, *more = [call for chunk in chunks for c in chunk.choices for call in c.delta.tool_calls or ()]
        assert (first.type, first.function.name, first.id is not None) == ("function", "get_weather", True)
        assert json.loads("".join(call.function.arguments for call in more))


def test_tools_with_references_in_their_schemas(client):
    def tool(name: str) -> dict:
        shape = {"type": "object", "properties": {"kind": {"enum": ["dot"]}}, "required": ["kind"]}
        parameters = {
            "type": "object",
            "$defs": {"Shape": {**shape, "additionalProperties": False}},
            "properties": {"shape": {"$ref": "#/$defs/Shape"}},
            "required": ["shape"],
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    for tools in ([tool("draw")], [tool("draw"), tool("paint")]):
        (call,) = ask(client, tools=tools, tool_choice="required", max_tokens=60).choices[0].message.tool_calls
        assert call.function.name in {"draw", "paint"}
        assert json.loads(call.function.arguments) == {"shape": {"kind": "dot"}}


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "documents"])
def test_clients_cannot_bring_a_template_of_their_own(client, name):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"chat_template_kwargs": {name: "{% for i in range(99999) %}{% endfor %}"}})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_history_with_absurd_arguments_is_no_server_error(tiny_server):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 3000}}
    history = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "x"}]
    with OpenAI(base_url=tiny_server.api, api_key="any", max_retries=0) as client:
        assert ask(client, [*CAPITAL, *history], model=tiny_server.model, max_tokens=1).choices


def test_a_streamed_echo(client):
    chunks = client.completions.create(
        model="starter", prompt="The capital of France is", echo=True, max_tokens=1, temperature=0, stream=True
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "The capital of France is Paris"


def test_a_schema_that_cannot_be_enforced_is_refused(client):
    schema = {"type": "object", "properties": {"a": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert caught.value.param == "response_format.json_schema.schema"
