"""An engine that says what it is told to, to the requests as they come."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import numpy as np

from jackfield.engine.request import (
    CacheUse,
    EmbeddingEvent,
    EmbeddingRequest,
    EngineEvent,
    EngineRequest,
    FinishEvent,
    GenerationRequest,
    StartEvent,
    TokenEvent,
)
from jackfield.engine.statistics import Statistics
from jackfield.engine.thread import Deliver
from jackfield.errors import EngineError, ShuttingDownError
from jackfield.testing.tokenizer import VOCABULARY

Result = TypeVar("Result")

CERTAIN = 10.0
"""The logit of the token that the script says, for processors and samplers; all others have 0."""

WIDTH = 8
"""Dimensions of embeddings."""


@dataclass(frozen=True, slots=True)
class Script:
    """What one choice of a request gets, step by step; without a `FinishEvent` at the end it goes on for ever."""

    steps: Sequence[Sequence[EngineEvent]]
    seconds: float = 0.0
    """A pause before each step."""


Untold = Callable[[GenerationRequest], Script]
"""What a request gets for which there is no script."""


class ScriptedEngine:
    """Answers each choice of each request with the next script; when there is none, with what ``default`` makes of it.

    Like the real engine it gives log probabilities and entropies only to requests that want them, ends at
    ``max_tokens`` and at the tokens that end an answer, and lets a request's logits processors and its sampler choose:
    they see logits of 0, and of 10 for the token in the script. The embedding of a text of n tokens is 1 in dimension
    n modulo `WIDTH`, and else 0.
    """

    def __init__(self, default: Untold) -> None:
        self.default = default
        self.scripts: deque[Script] = deque()
        self.requests: list[GenerationRequest] = []
        """All that have come, with what plugins have added on the engine's thread."""
        self.embedded: list[EmbeddingRequest] = []
        """And those for embeddings."""
        self.cancelled: list[str] = []
        """Ids of those that were stopped before their end."""
        self.state = "ready"
        self.trouble: str | None = None
        self.statistics = Statistics()
        self.going = asyncio.Event()
        """Cleared, answers wait after their first token. The event loop's."""
        self.going.set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, Deliver] = {}
        self._thread = ThreadPoolExecutor(1, "scripted-engine")

    @property
    def ready(self) -> bool:
        """Whether requests are answered; set ``state`` to change it."""
        return self.state == "ready"

    @property
    def refuses(self) -> bool:
        """It never does."""
        return False

    def admit(self, request_ids: Sequence[str]) -> None:
        """Take whatever comes."""

    def submit(self, request: EngineRequest, deliver: Deliver) -> None:
        """Begin with the next script."""
        if isinstance(request, EmbeddingRequest):
            self.embedded.append(request)
            asyncio.get_running_loop().call_soon(deliver, _vectors(request))
            return
        script = self.scripts.popleft() if self.scripts else None
        self._waiting[request.id] = deliver
        self._tasks[request.id] = asyncio.get_running_loop().create_task(self._play(script, request, deliver))

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Stop; harmless for those ended."""
        for one in request_ids:
            self._waiting.pop(one, None)
            task = self._tasks.pop(one, None)
            if task is not None and task.cancel():
                self.cancelled.append(one)

    def drain(self) -> None:
        """Go on: it has no queue."""

    def interrupt(self) -> None:
        """End all requests with an error."""
        for one, deliver in list(self._waiting.items()):
            self.cancel([one])
            deliver([FinishEvent("error", ShuttingDownError())])

    def close(self) -> None:
        """End the engine's thread."""
        self._thread.shutdown()

    async def _play(self, script: Script | None, request: GenerationRequest, deliver: Deliver) -> None:
        try:
            if request.prepare is not None:
                request = await self._on_thread(partial(request.prepare, request))
            self.requests.append(request)
            await self._step(script or self.default(request), request, deliver)
        except Exception as error:
            failed = EngineError(f"The scripted engine failed: {error!r}", suggestions=("Look at the test's script.",))
            deliver([FinishEvent("error", failed)])

    async def _on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _step(self, script: Script, request: GenerationRequest, deliver: Deliver) -> None:
        answer: list[int] = []
        for step in script.steps:
            await asyncio.sleep(script.seconds)
            if answer:
                await self.going.wait()
            events = [await self._event(event, request, answer) for event in step]
            end = _end(request, answer)
            deliver([*events, end] if end else events)
            if end:
                return

    async def _event(self, event: EngineEvent, request: GenerationRequest, answer: list[int]) -> EngineEvent:
        if not isinstance(event, TokenEvent):
            return event
        token = event.id
        if request.processors or request.sampler:
            token = await self._on_thread(partial(_choose, token, request, tuple(answer)))
        answer.append(token)
        return _as_asked(event, token, request)


def _vectors(request: EmbeddingRequest) -> list[EngineEvent]:
    places = [len(tokens) % WIDTH for tokens in request.inputs]
    found = EmbeddingEvent(np.eye(WIDTH, dtype=np.float32)[places])
    return [StartEvent(0.0, CacheUse()), found, FinishEvent("stop")]


def _choose(token: int, request: GenerationRequest, answer: tuple[int, ...]) -> int:
    """What processors and sampler make of a token."""
    import mlx.core as mx  # noqa: PLC0415 - on the engine's thread alone

    logits = mx.zeros(VOCABULARY)
    logits[token] = CERTAIN
    for processor in request.processors:
        logits = processor(request.prompt + answer, logits)
    own = request.sampler(logits) if request.sampler else None
    return cast(int, (mx.argmax(logits) if own is None else own).item())


def _as_asked(event: TokenEvent, token: int, request: GenerationRequest) -> TokenEvent:
    """Without what the request did not ask for."""
    asked = request.top_logprobs is not None
    return replace(
        event,
        id=token,
        logprob=event.logprob if asked else None,
        top=event.top[: request.top_logprobs] if asked else (),
        entropy=event.entropy if request.entropy else None,
        time=time.monotonic(),
    )


def _end(request: GenerationRequest, answer: Sequence[int]) -> FinishEvent | None:
    if answer and answer[-1] in request.stop_tokens:
        return FinishEvent("stop")
    return FinishEvent("length") if len(answer) >= request.max_tokens else None


def tokens(ids: Sequence[int], logprob: float | Sequence[float], entropy: float | Sequence[float]) -> list[TokenEvent]:
    """Events of these tokens with these signals, one for all of them or one each."""
    each = zip(ids, _each(logprob, len(ids)), _each(entropy, len(ids)), strict=True)
    return [TokenEvent(token, one, _most_likely(token, one), nats) for token, one, nats in each]


def _each(value: float | Sequence[float], count: int) -> Sequence[float]:
    values = value if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"there are {count} tokens (a byte each), and {len(values)} numbers for them")
    return values


def _most_likely(token: int, logprob: float) -> tuple[tuple[int, float], ...]:
    """All tokens, best first: this one, and the others with equal shares of what it leaves."""
    left = max(-math.expm1(logprob), 1e-12)
    share = math.log(left / (VOCABULARY - 1))
    others = [(other, share) for other in range(VOCABULARY) if other != token]
    return tuple(sorted([(token, logprob), *others], key=lambda pair: -pair[1]))


def script(said: Sequence[TokenEvent], start: StartEvent, end: FinishEvent | None, seconds: float = 0.0) -> Script:
    """A request's whole way: it starts, a step for each token, and the end, if there is to be one."""
    return Script([[start], *([token] for token in said), *([[end]] if end else [])], seconds)
