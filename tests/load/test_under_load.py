"""Everybody gets what they get alone: in any company, cached or not, and however their prompts are cut."""

import asyncio
import codecs
import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from jackfield.api.generation import engine_requests
from jackfield.engine.memory import MemoryGuard
from jackfield.engine.pace import PrefillPace
from jackfield.engine.prefix_cache import PrefixCache
from jackfield.engine.request import FinishEvent, GenerationRequest, SamplingParameters, StartEvent, TokenEvent
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Scheduler
from jackfield.engine.slab import SlabSizes
from jackfield.events import EventBus
from jackfield.exchange import Exchange
from jackfield.hooks.data import RequestInfo
from jackfield.hooks.discovery import given
from jackfield.metrics.requests import RequestMetrics
from jackfield.models import cpu
from jackfield.models.folder import read_json
from jackfield.models.loading import load_network
from jackfield.models.registry import Registry, ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.settings import Settings
from scenarios import Prompts
from serving import Server, serve
from ties import Judge

TOLERANCE = 5e-4
"""Of log probabilities. Float32 products that are summed in another order: 30 layers make 1.2e-4 of it, as
benchmarks/agreement.py measures here; another BLAS may need more."""
QUANTIZED_TOLERANCE = 0.5
"""With keys and values in 8 bits: an element on the edge of two steps falls to one or the other, in every layer.
By 0.33 at most in benchmarks/agreement.py, so this finds what is wrong by far, and no more."""
TIMEOUT = 600

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Give me the name and age of a person, as JSON.",
    "Why is the sky blue? Explain it to a child.",
    "Count from 1 to 50.",
]
LENGTHS = [20, 30, 40, 60, 90, 25, 35, 45, 250, 50, 30, 20, 600, 40, 30, 20]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy-logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 5},
    "warm": {"temperature": 0.7, "seed": 1},
    "whole": {"temperature": 1, "seed": 2, "logprobs": True},
    "hot": {"temperature": 1.5, "seed": -3, "ignore_eos": True},
    "top-p": {"temperature": 1, "top_p": 0.9, "seed": 4},
    "top-k": {"temperature": 1, "top_k": 40, "seed": 5, "logprobs": True, "top_logprobs": 2},
    "min-p": {"temperature": 1.5, "min_p": 0.05, "seed": 2**62},
    "cuts": {"temperature": 1, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "seed": 7},
    "penalties": {"temperature": 0.7, "frequency_penalty": 0.5, "presence_penalty": 0.5, "seed": 8, "logprobs": True},
    "repetition": {"temperature": 0, "repetition_penalty": 1.3},
    "bias": {"temperature": 1, "seed": 9, "logit_bias": {"28": 3, "30": -100, "260": 2}},
    "schema": {
        "temperature": 0.7,
        "seed": 10,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    },
    "stop": {"temperature": 0, "stop": [".", " the"]},
    "choices": {"temperature": 1, "top_p": 0.95, "seed": 11, "n": 2, "logprobs": True, "top_logprobs": 3},
    "patient": {"temperature": 0.7, "top_k": 20, "seed": 12, "priority": 50, "timeout": 600},
}


def body(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    long = number >= len(KINDS)
    content = Prompts("load").of(LENGTHS[number % len(LENGTHS)], number) if long else QUESTIONS[number % len(QUESTIONS)]
    return {
        "model": "starter",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8 + 7 * number % 17,
        "stream": number % 3 > 0,
        **fields,
    }


BODIES = {
    f"{kind}-{size}": body(number, fields)
    for number, (size, kind, fields) in enumerate((size, *item) for size in ("short", "long") for item in KINDS.items())
}
"""32 clients."""


# --- Answers ---------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """One choice."""

    text: str = ""
    finish: str | None = None
    tokens: list[bytes] = field(default_factory=list)
    """And what follows, when log probabilities were asked for."""
    logprobs: list[float] = field(default_factory=list)
    top: list[list[float]] = field(default_factory=list)

    def add(self, choice: dict[str, Any]) -> None:
        """Take in a whole choice, or a part of one out of a stream."""
        self.text += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
        self.finish = choice.get("finish_reason") or self.finish
        for token in (choice.get("logprobs") or {}).get("content") or ():
            self.tokens.append(bytes(token["bytes"]))
            self.logprobs.append(token["logprob"])
            self.top.append([one["logprob"] for one in token["top_logprobs"]])


def text_of(tokens: Iterable[bytes]) -> str:
    """As far as its characters are whole."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(tokens))


def first_difference(found: Answer, expected: Answer) -> int | None:
    """The first token of an answer that the other one does not have in its place."""
    if (found.text, found.finish) == (expected.text, expected.finish):
        return None
    if found.tokens:
        # The same text can be put together from other tokens.
        pairs = enumerate(zip(found.tokens, expected.tokens, strict=False))
        return next(
            (index for index, (one, other) in pairs if one != other), min(len(found.tokens), len(expected.tokens))
        )
    prefixes = (text_of(expected.tokens[: index + 1]) for index in range(len(expected.tokens)))
    differing = (index for index, prefix in enumerate(prefixes) if not found.text.startswith(prefix))
    return next(differing, len(expected.tokens))


@dataclass
class Court:
    """Judges whether two answers to a request are the same, but for ties."""

    model: ServedModel
    judge: Judge
    ids: dict[bytes, int]

    def assert_same(self, request: GenerationRequest, found: Answer, expected: Answer) -> None:
        end = first_difference(found, expected)
        self.assert_close(found, expected, end)
        if end is not None:
            self.assert_tie(request, found, expected, end)

    def assert_close(self, found: Answer, expected: Answer, end: int | None) -> None:
        tolerance = self.judge.tolerance
        if found.logprobs:
            assert found.logprobs[:end] == pytest.approx(expected.logprobs[:end], abs=tolerance)
            assert np.ravel(found.top[:end]) == pytest.approx(np.ravel(expected.top[:end]), abs=tolerance)

    def assert_tie(self, request: GenerationRequest, found: Answer, expected: Answer, end: int) -> None:
        before = expected.tokens[:end]
        chosen = expected.tokens[end : end + 1]
        others = self.judge.candidates(request, [self.ids[token] for token in before]).tolist()
        pieces = [self.model.tokenizer.token_bytes(other) for other in others]
        texts = [
            text_of(before) if other in request.stop_tokens else text_of([*before, piece])
            for other, piece in zip(others, pieces, strict=True)
            if piece not in chosen
        ]
        assert any(found.text.startswith(text) or text.startswith(found.text) for text in texts), (
            f"no tie at token {end}: {found.text!r} is not {expected.text!r}, and only {pieces} may come there"
        )

    def requests(self, body: dict[str, Any]) -> list[GenerationRequest]:
        """What the engine is given."""
        asked = ChatCompletionRequest.model_validate_json(json.dumps(body))
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        grammar = self.model.grammars.compile("json_schema", json.dumps(schema), "") if schema else None
        prompt = chat_prompt(asked, self.model.tokenizer).tokens
        info = RequestInfo("", "/chat/completions", "starter")
        metrics = RequestMetrics(CollectorRegistry(), Registry([self.model]))
        exchange = Exchange(info, given((), Settings()), EventBus(), metrics, slow_seconds=60)
        return engine_requests(asked, self.model, [prompt], exchange, name="", param="", grammar=grammar)


@pytest.fixture(scope="module")
def runner(starter: Path, device) -> Runner:
    return Runner(load_network(starter, device, prepare=cpu.prepare).model)


@pytest.fixture(scope="module")
def court(starter: Path, runner: Runner) -> Court:
    tokenizer = Tokenizer(starter)
    defaults = read_json(starter / "generation_config.json")
    model = ServedModel("starter", tokenizer, None, 8192, runner.vocabulary, defaults)
    ids = {tokenizer.token_bytes(token): token for token in reversed(range(runner.vocabulary))}
    return Court(model, Judge(runner, TOLERANCE), ids)


# --- Clients ---------------------------------------------------------------------------------------------------------


async def parts(client: httpx2.AsyncClient, body: dict[str, Any]) -> Any:
    """A whole answer, or the chunks of a stream."""
    async with client.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200 or not body.get("stream"):
            yield json.loads(await response.aread())
            return
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def ask(client: httpx2.AsyncClient, body: dict[str, Any]) -> list[Answer]:
    """All choices."""
    answers = [Answer() for _ in range(body.get("n", 1))]
    async for part in parts(client, body):
        assert "error" not in part, part
        for choice in part["choices"]:
            answers[choice["index"]].add(choice)
    return answers


async def hang_up(client: httpx2.AsyncClient, body: dict[str, Any], chunks: int, seconds: float = TIMEOUT) -> None:
    """Read so many chunks of a stream, or wait so long, and go away."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), contextlib.aclosing(parts(client, {**body, "stream": True})) as stream:
            async for _ in stream:
                if not (chunks := chunks - 1):
                    return


async def give_up(client: httpx2.AsyncClient, body: dict[str, Any], seconds: float) -> None:
    """Have an answer cut by a deadline."""
    async for _ in parts(client, {**body, "timeout": seconds}):
        pass


def clients(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.api, timeout=TIMEOUT, limits=httpx2.Limits(max_connections=None))


def endless(number: int, tokens: int) -> dict[str, Any]:
    """Somebody who does not wait for the end of the answer."""
    fields = {"max_tokens": 2000, "ignore_eos": True, "temperature": 1, "priority": -number}
    return body(number, {}) | {"messages": [{"role": "user", "content": Prompts("load").of(tokens, number)}]} | fields


async def under_load(server: Server) -> dict[str, list[Answer]]:
    """All clients at once, with others among them who hang up or run out of time in all phases."""
    async with clients(server) as client, asyncio.TaskGroup() as group:
        for number, (tokens, chunks, seconds) in enumerate([(400, 1, 0.5), (40, 4, 60), (60, 9, 60), (300, 1, 3)]):
            group.create_task(hang_up(client, endless(number, tokens), chunks, seconds))
        for number, seconds in enumerate([0.01, 5, 9], 10):
            group.create_task(give_up(client, endless(number, 40), seconds))
        tasks = {name: group.create_task(ask(client, body)) for name, body in BODIES.items()}
    return {name: task.result() for name, task in tasks.items()}


def with_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "logprobs": True, "stream": False}


async def one_by_one(server: Server, bodies: Iterable[dict[str, Any]]) -> list[list[Answer]]:
    async with clients(server) as client:
        return [await ask(client, with_logprobs(body)) for body in bodies]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """What it has seen before must not matter here: caching has tests of its own."""
    with serve("starter", JACKFIELD_MAX_BATCH="32", JACKFIELD_PREFIX_CACHE_BYTES="0") as server:
        yield server


@pytest.fixture(scope="module")
def together(server: Server) -> dict[str, list[Answer]]:
    return asyncio.run(under_load(server))


@pytest.mark.parametrize("name", BODIES)
def test_each_client_gets_what_it_gets_alone(server, together, court, name):
    (alone,) = asyncio.run(one_by_one(server, [BODIES[name]]))
    for request, found, expected in zip(court.requests(BODIES[name]), together[name], alone, strict=True):
        assert found.finish is not None
        court.assert_same(request, found, expected)


def test_nothing_failed_meanwhile(server, together):
    assert not [line for line in server.log if "Traceback" in line or line.startswith("ERROR")]


# --- Cached against uncached -----------------------------------------------------------------------------------------

SHARED = Prompts("cached").of(120)
CONVERSATIONS = {
    kind: body(0, KINDS[kind]) | {"messages": [{"role": "user", "content": f"{SHARED}\n{question}"}], "stream": False}
    for kind, question in [("greedy", "In a word?"), ("choices", "In two words?"), ("schema", "Who is the hero?")]
}


@pytest.fixture(scope="module")
def uncached(server: Server) -> dict[str, list[Answer]]:
    return dict(zip(CONVERSATIONS, asyncio.run(one_by_one(server, CONVERSATIONS.values())), strict=True))


async def ask_with_cache(server: Server, body: dict[str, Any]) -> tuple[list[Answer], dict[str, Any]]:
    """An answer, and how its prompt was cached."""
    asked = with_logprobs(body) | {"model": server.model, "jackfield": True}
    async with clients(server) as client:
        (whole,) = [part async for part in parts(client, asked)]
    answers = [Answer() for _ in whole["choices"]]
    for choice in whole["choices"]:
        answers[choice["index"]].add(choice)
    cached = whole["usage"]["prompt_tokens_details"]["cached_tokens"]
    reports = whole["jackfield"]["choices"]
    assert cached == reports[0]["cache"]["cached_tokens"]
    return answers, reports[-1]["cache"]


async def leave(server: Server, body: dict[str, Any]) -> None:
    async with clients(server) as client:
        await hang_up(client, body | {"model": server.model}, 3)


def test_cached_prompts_are_answered_as_uncached_ones(starter, court, uncached, tmp_path):
    settings = {"JACKFIELD_CACHE_DIR": str(tmp_path), "JACKFIELD_PREFIX_CACHE_DISK_BYTES": "1GB"}

    def check(server: Server, name: str) -> dict[str, Any]:
        answers, cache = asyncio.run(ask_with_cache(server, CONVERSATIONS[name]))
        for request, found, expected in zip(court.requests(CONVERSATIONS[name]), answers, uncached[name], strict=True):
            court.assert_same(request, found, expected)
        return cache

    with serve(starter, **settings) as server:
        assert check(server, "greedy")["cached_tokens"] == 0
        asyncio.run(leave(server, CONVERSATIONS["choices"]))
        for name in CONVERSATIONS:  # the same again, what was left in the middle, and one that branches off
            assert check(server, name)["cached_tokens"] > 100
    with serve(starter, **settings) as server:
        for name in CONVERSATIONS:
            use = check(server, name)
            assert use["cached_tokens"] > 100
            assert use["from_disk"] > 100 or name != "greedy"


# --- In the engine: slices, caches, preemptions ----------------------------------------------------------------------


def prompt_of(court: Court, tokens: int, number: int) -> tuple[int, ...]:
    return tuple(court.model.tokenizer.encode(Prompts("engine").of(tokens, number)))


@pytest.fixture(scope="module")
def requests(court: Court) -> list[GenerationRequest]:
    """Of one batch."""
    sampling = [
        SamplingParameters(temperature=0),
        SamplingParameters(seed=1),
        SamplingParameters(temperature=1.5, min_p=0.02, seed=2),
        SamplingParameters(top_k=30, top_p=0.9, repetition_penalty=1.2, seed=3),
        SamplingParameters(temperature=0, frequency_penalty=0.3),
    ]
    lengths = [20, 40, 130, 11, 70]
    return [
        GenerationRequest(str(i), prompt_of(court, length, i), 8, one, top_logprobs=3)
        for i, (length, one) in enumerate(zip(lengths, sampling, strict=True))
    ]


def answers(court: Court, engine: Scheduler, requests: Iterable[GenerationRequest]) -> tuple[list[Answer], int]:
    """What these get when they come at once, and how many tokens of their prompts were cached."""
    found = {request.id: Answer() for request in requests}
    cached = 0
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        for name, event in engine.step():
            match event:
                case StartEvent():
                    cached += event.cache.tokens
                case TokenEvent():
                    found[name].tokens.append(court.model.tokenizer.token_bytes(event.id))
                    found[name].logprobs.append(event.logprob)
                    found[name].top.append([logprob for _, logprob in event.top])
                case FinishEvent():
                    found[name].finish = event.reason
    for answer in found.values():
        answer.text = text_of(answer.tokens)
    return list(found.values()), cached


def scheduler(runner: Runner, *, cache: int = 0, slices: int = 4096, guard: MemoryGuard | None = None) -> Scheduler:
    pace = PrefillPace(smallest=slices, smallest_shared=slices, largest=slices)
    return Scheduler(runner, PrefixCache(cache), 32, guard or MemoryGuard(1 << 62), pace)


def alone(court: Court, runner: Runner, requests: Iterable[GenerationRequest]) -> list[Answer]:
    return [answers(court, scheduler(runner), [request])[0][0] for request in requests]


@pytest.fixture(scope="module", params=[None, 8], ids=["float32", "8 bits"])
def setting(request, court: Court, runner: Runner, requests) -> tuple[Court, Runner, list[Answer]]:
    """With keys and values as they are, and quantized: who judges, the model, and what everybody gets alone."""
    if request.param is None:
        return court, runner, alone(court, runner, requests)
    quantized = Runner(runner.model, kv_bits=request.param)
    lenient = replace(court, judge=Judge(quantized, QUANTIZED_TOLERANCE))
    return lenient, quantized, alone(lenient, quantized, requests)


def assert_all_same(court: Court, requests: Iterable[GenerationRequest], *answers: Iterable[Answer]) -> None:
    for request, found, expected in zip(requests, *answers, strict=True):
        court.assert_same(request, found, expected)


@pytest.mark.parametrize("slices", [7, 64])
def test_prompts_in_slices_and_answers_in_a_batch(setting, requests, slices):
    court, runner, expected = setting
    found, _ = answers(court, scheduler(runner, slices=slices), requests)
    assert_all_same(court, requests, found, expected)


def test_prompts_out_of_the_cache(setting, requests):
    court, runner, expected = setting
    engine = scheduler(runner, cache=1 << 30, slices=64)
    assert answers(court, engine, requests)[1] == 0
    found, cached = answers(court, engine, requests)
    assert cached > 200
    assert_all_same(court, requests, found, expected)


def test_answers_that_had_to_wait_for_memory(court, runner, monkeypatch):
    """Small rows, and no room for what answers will need, so that it takes few tokens to get there."""
    monkeypatch.setattr("jackfield.engine.room.GROWTH", 0)
    runner = Runner(runner.model, sizes=SlabSizes(smallest=64, step=64))
    sampling = [SamplingParameters(temperature=0), SamplingParameters(seed=4), SamplingParameters(top_p=0.9, seed=5)]
    requests = [
        GenerationRequest(str(i), prompt_of(court, 100, i)[:58], 16, one, top_logprobs=1)
        for i, one in enumerate(sampling)
    ]
    engine = scheduler(runner, guard=MemoryGuard(4 * runner.row_bytes(1)))
    found, _ = answers(court, engine, requests)
    assert engine.statistics.preemptions > 0
    assert_all_same(court, requests, found, alone(court, runner, requests))
