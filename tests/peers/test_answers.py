"""Real servers answer through a Jackfield, whose clients ask in every dialect that it has."""

import json
from typing import Any

import httpx2
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion_message_function_tool_call import Function
from peer import COUNTLESS, Peer

from serving import Server

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"unit": {"type": "string", "enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": SCHEMA}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "strict": True, "parameters": SCHEMA}}
NAMED: Any = {"type": "function", "function": {"name": "clock"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"unit": "F"}'}}
SEEN: Any = [
    {"role": "user", "content": "The weather in F?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "user", "content": "The weather in C?"},
]
"""A call, after which a small model too makes one."""
BRIEF: Any = {"temperature": 0, "frequency_penalty": 2}
"""So that a small model does not fill a form with line breaks."""
CAN_BE_HELD = ("llama.cpp", "vllm", "ray")
"""Whoever keeps to a grammar; mlx_lm.server takes no notice of it."""


def post(front: Server, path: str, body: Any) -> tuple[int, Any]:
    reply = httpx2.post(front.url + path, json={"model": "theirs", **body}, timeout=120)
    return reply.status_code, reply.json()


def test_a_stream_says_what_an_answer_in_one_piece_says(client: OpenAI) -> None:
    asked: Any = {"model": "theirs", "messages": [{"role": "user", "content": "Tell a long story."}]}
    asked |= {"max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 3
    assert whole.choices[0].finish_reason == "length"
    assert whole.model == "theirs"
    assert whole.usage and chunks[-1].usage
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 12
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens > 8


def test_tokens_of_several_choices_are_counted_once(client: OpenAI, peer: Peer) -> None:
    asked: Any = {"model": "theirs", "messages": QUESTION, "max_tokens": 5, "n": 2, "seed": 3}
    if peer.kind == "mlx_lm":
        # It gives one, however many are asked for.
        with pytest.raises(openai.BadRequestError, match="fewer choices"):
            client.chat.completions.create(**asked)
        return
    answer = client.chat.completions.create(**asked)
    alone = client.chat.completions.create(**{**asked, "n": 1})
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage and alone.usage
    assert answer.usage.completion_tokens == 10
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    texts = client.completions.create(model="theirs", prompt=["One, two,", "A, b,"], n=2, max_tokens=3)
    assert len(texts.choices) == 4
    assert texts.usage and texts.usage.completion_tokens == 12


def test_log_probabilities_are_those_of_the_text(client: OpenAI, peer: Peer) -> None:
    if peer.kind == "mlx_lm":
        pytest.skip("mlx_lm.server streams without log probabilities")
    answer = client.chat.completions.create(
        model="theirs", messages=QUESTION, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    ).choices[0]
    assert answer.logprobs and answer.logprobs.content
    assert "".join(one.token for one in answer.logprobs.content) == answer.message.content
    for one in answer.logprobs.content:
        assert one.top_logprobs[0].token == one.token
        assert one.logprob <= 0 and len(one.top_logprobs) == 2
    older = client.completions.create(model="theirs", prompt="One, two,", max_tokens=4, temperature=0, logprobs=2)
    told = older.choices[0].logprobs
    assert told and told.tokens and "".join(told.tokens) == older.choices[0].text


def test_stop_strings_end_an_answer(client: OpenAI) -> None:
    asked: Any = {"model": "theirs", "prompt": "1, 2, 3, 4,", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stopped = client.completions.create(**asked, stop=[" 7"]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole.partition(" 7")[0], "stop")


def test_a_seed_gives_the_same_again(client: OpenAI) -> None:
    asked: Any = {"model": "theirs", "prompt": "Once upon", "max_tokens": 8, "temperature": 1.0}
    texts = [client.completions.create(**asked, seed=seed).choices[0].text for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_a_tool_is_called(client: OpenAI, peer: Peer, choice: Any, stream: bool) -> None:
    if peer.kind == "mlx_lm":
        pytest.skip("the starter's own template, which mlx_lm.server has, shows no tools")
    asked: Any = {"model": "theirs", "messages": SEEN, "tools": [CLOCK, WEATHER], "max_tokens": 80}
    call = called(client, {**asked, "tool_choice": choice, "temperature": 0}, stream=stream)
    assert call.name == ("clock" if choice is NAMED else "weather")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_that_must_be_called_is(client: OpenAI, peer: Peer, stream: bool) -> None:
    if peer.kind == "mlx_lm":
        pytest.skip("mlx_lm.server takes no notice of tool_choice")
    if peer.kind == "llama.cpp":
        pytest.skip("llama.cpp lets an answer end in nothing but a call, but words of any length come before it")
    asked: Any = {"model": "theirs", "messages": QUESTION, "tools": [WEATHER], "max_tokens": 80, **BRIEF}
    call = called(client, {**asked, "tool_choice": "required"}, stream=stream)
    assert call.name == "weather" and json.loads(call.arguments)["unit"] in ("C", "F")


def called(client: OpenAI, asked: Any, *, stream: bool) -> Function:
    """The one that an answer calls."""
    if stream:
        with client.chat.completions.stream(**asked) as events:
            answer: ChatCompletion = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    [call] = answer.choices[0].message.tool_calls or ()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function" and isinstance(json.loads(call.function.arguments), dict)
    return call.function


def test_an_answer_fits_its_schema(client: OpenAI, peer: Peer) -> None:
    if peer.kind not in CAN_BE_HELD:
        pytest.skip("mlx_lm.server takes no notice of response_format")
    form: Any = {"type": "json_schema", "json_schema": {"name": "unit", "strict": True, "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="theirs", messages=QUESTION, response_format=form, max_tokens=60, **BRIEF
    )
    assert json.loads(answer.choices[0].message.content or "")["unit"] in ("C", "F")


def test_a_regular_expression_holds_or_is_refused(client: OpenAI, peer: Peer) -> None:
    if peer.kind == "mlx_lm":
        pytest.skip("mlx_lm.server takes no notice of regex")
    asked: Any = {"model": "theirs", "messages": QUESTION, "max_tokens": 12, "extra_body": {"regex": "[0-9]{3}"}}
    if peer.speaks == "vllm":
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
        assert len(text) == 3 and text.isdecimal()
    else:
        with pytest.raises(openai.BadRequestError, match="no way to say 'regex'") as refused:
            client.chat.completions.create(**asked)
        assert (refused.value.code, refused.value.param) == ("unsupported_value", "regex")


def test_a_penalty_has_the_name_that_is_known_there(client: OpenAI) -> None:
    asked: Any = {"model": "theirs", "prompt": "na na na na na na na na", "max_tokens": 8, "temperature": 0}
    plain = client.completions.create(**asked).choices[0].text
    varied = client.completions.create(**asked, extra_body={"repetition_penalty": 2.0}).choices[0].text
    assert plain != varied


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/v1/completions", "/infill"])
def test_a_gap_is_filled_or_refused(front: Server, peer: Peer, path: str) -> None:
    gap = {"input_prefix": "def add(a, b", "input_suffix": "    return a + b"}
    body: Any = {"prompt": "def add(a, b", "suffix": "    return a + b", "max_tokens": 5, "temperature": 0}
    status, told = post(front, path, {**gap, "n_predict": 5, "temperature": 0} if path == "/infill" else body)
    if peer.kind == "llama.cpp":
        # It reads both sides, in its own order.
        assert status == 200, told
        counted = told["tokens_evaluated"] if path == "/infill" else told["usage"]["prompt_tokens"]
        assert counted > 12
    elif peer.speaks == "vllm" or path == "/infill":
        assert (status, told["error"]["code"]) == (400, "unsupported_value")


def test_a_gap_with_log_probabilities_is_refused_where_it_cannot_have_them(front: Server, peer: Peer) -> None:
    if peer.kind != "llama.cpp":
        pytest.skip("only llama.cpp is asked at another place")
    status, told = post(front, "/v1/completions", {"prompt": "a", "suffix": "b", "logprobs": 1})
    assert (status, told["error"]["param"]) == (400, "logprobs")


def test_a_prompt_that_does_not_fit_is_said_to_be_too_long(client: OpenAI, peer: Peer) -> None:
    if peer.kind == "mlx_lm":
        pytest.skip("mlx_lm.server reads on beyond the context of the model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="theirs", prompt="word " * 4000, max_tokens=2)
    assert refused.value.code == "context_length_exceeded"


def test_a_model_that_is_not_there(front: Server, peer: Peer) -> None:
    with OpenAI(base_url=front.api, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="unheard-of", prompt="Hi")
        assert {"theirs", "starter"} == {model.id for model in client.models.list()}


def test_messages_and_responses(front: Server, client: OpenAI) -> None:
    with Anthropic(base_url=front.url, api_key="none", max_retries=0) as anthropic:
        message = anthropic.messages.create(model="theirs", messages=QUESTION, max_tokens=6)
        with anthropic.messages.stream(model="theirs", messages=QUESTION, max_tokens=6) as stream:
            streamed = stream.get_final_message()
    assert message.usage.output_tokens == streamed.usage.output_tokens == 6
    assert (message.stop_reason, streamed.stop_reason) == ("max_tokens", "max_tokens")
    answer = client.responses.create(model="theirs", input="Name three colours.", max_output_tokens=16)
    assert answer.usage and 0 < answer.usage.output_tokens <= 16
    assert answer.output_text


def test_vectors_are_refused_by_who_has_none(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="theirs", input="Hi")
    assert refused.value.code == "unsupported_value"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens"])
def test_tokens_are_refused_by_who_does_not_count_them(front: Server, peer: Peer, path: str) -> None:
    if peer.kind not in COUNTLESS:
        pytest.skip(f"{peer.kind} does")
    asked: Any = {"/tokenize": {"prompt": "Hello world"}, "/detokenize": {"tokens": [19556, 905]}}
    status, told = post(front, path, asked.get(path, {"messages": QUESTION}))
    assert (status, told["error"]["message"][:13]) == (400, "Upstream peer")
