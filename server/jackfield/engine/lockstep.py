"""One model in several processes, each with a part of it, all of which take the same steps.

The leader's scheduler works as any does. Before it is called, it tells the followers what it is about to be told, and
all that it could know and they could not: the time, the free memory, how fast it has been. Theirs decide the same then
(state machine replication, Schneider 1990), and so send the same tokens through their parts of the model, in the same
batches. Which tokens came out, and who has finished, is the leader's to say: nobody else samples.
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import mlx.core as mx
import numpy as np

from jackfield.engine.batch import DecodeBatch, Step
from jackfield.engine.collective import Collective
from jackfield.engine.memory import LOOK_SECONDS, MemoryGuard
from jackfield.engine.request import (
    Adapter,
    EmbeddingRequest,
    EngineRequest,
    FinishReason,
    GenerationRequest,
    PromptImage,
    SamplingParameters,
    TokenEvent,
)
from jackfield.engine.runner import Runner
from jackfield.engine.scheduler import Events, Scheduler

WHO_SECONDS = 1.0
"""After so long it is known which follower is gone, if one is."""

Message = dict[str, Any]
"""What processes of a group tell each other: JSON."""

Verdict = tuple[int | None, FinishReason | None, bool]
"""What a step brought for one sequence: a token, whether that ends it, and whether what was computed is suspect."""


class Followers(Protocol):
    """Those who take the leader's steps with it."""

    @property
    def free(self) -> int:
        """Bytes of memory that the one with the least has free."""

    def tell(self, message: Message) -> None:
        """All of them hear it, in order."""

    def break_up(self, reason: str) -> None:
        """There is no going on with them; this process will end."""


@dataclass(slots=True)
class Moment:
    """What there is to know of the world during one call of the scheduler."""

    now: float = 0.0
    free: int = 1 << 62

    def govern(self, guard: MemoryGuard) -> None:
        """Let a guard know no other time and no other memory."""
        guard.clock = lambda: self.now
        guard.free = lambda: self.free


# --- The leader --------------------------------------------------------------------------------------------------


class LeadingBatch(DecodeBatch):
    """Samples for everybody."""

    def __init__(self, runner: Runner, collective: Collective, tell: Callable[[Message], None]) -> None:
        super().__init__(runner)
        self._collective = collective
        self._tell = tell

    def read(self) -> list[Step]:
        """The tokens that the model is running on; see the base class."""
        steps = super().read()
        self._tell({"read": [_verdict(step) for step in steps]})
        return steps

    def sample(self) -> None:
        """Choose each row's next token; see the base class."""
        asked = self._logits is not None and bool(self.sequences)
        super().sample()
        if asked:
            self._tokens = _agreed(self._tokens, self._collective, self._runner)


def _agreed(tokens: mx.array, collective: Collective, runner: Runner) -> mx.array:
    """The leader's tokens, int32 [rows]; does not wait for them."""
    # When somebody dies meanwhile, what comes may be anything, and the network looks it up before anybody learns of it.
    agreed = mx.clip(collective.from_leader(tokens), 0, runner.vocabulary - 1)
    mx.async_eval(agreed)
    return agreed


def _verdict(step: Step) -> Verdict:
    return (step.token.id if step.token else None, step.finished, step.sequence.suspect)


@dataclass
class LeadingScheduler(Scheduler):
    """Tells the followers before it does anything."""

    collective: Collective = field(kw_only=True)
    followers: Followers = field(kw_only=True)
    _moment: Moment = field(init=False, default_factory=lambda: Moment(time.monotonic()))
    _looked: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._machine = self.guard.free
        self._moment.govern(self.guard)
        super().__post_init__()

    def new_batch(self) -> DecodeBatch:
        """An empty decode batch."""
        return LeadingBatch(self.runner, self.collective, self.followers.tell)

    def submit(self, request: EngineRequest) -> None:
        """Put a request in the queue."""
        self._tell(submit=to_message(request))
        super().submit(request)

    def cancel(self, request_ids: frozenset[str]) -> None:
        """Forget these requests."""
        self._tell(cancel=sorted(request_ids))
        super().cancel(request_ids)

    def resize(self, pool: int, prefix_cache: int) -> None:
        """Have more memory, or less."""
        self._tell(resize=[pool, prefix_cache])
        super().resize(pool, prefix_cache)

    def step(self) -> Events:
        """A slice of one prompt, and one token for everybody who is being answered."""
        pace = self.pace
        self._tell(step=[pace.rate, pace.slow_rate, pace.step])
        try:
            return super().step()
        except BaseException as error:
            self._give_up(f"rank 0 failed: {error}")

    def rest(self) -> None:
        """Nothing to do."""
        self._tell(rest=True)
        super().rest()

    def clear(self) -> None:
        """After a failure nobody knows how far the others have come: the group starts anew, as a whole."""
        self._give_up("rank 0 failed")

    def _give_up(self, reason: str) -> NoReturn:
        # MLX may notice first that somebody is gone, but not who.
        time.sleep(WHO_SECONDS)
        self.followers.break_up(reason)
        # This thread's part of MLX may still wait for the others, and would go with it. The process ends soon.
        while True:
            time.sleep(60)

    def close(self) -> None:
        """The end, of the followers too."""
        self.followers.tell({"close": True})
        super().close()

    def _tell(self, **call: Any) -> None:
        moment = self._moment
        moment.now = time.monotonic()
        if moment.now - self._looked >= LOOK_SECONDS:
            self._looked = moment.now
            moment.free = min(self._machine(), self.followers.free)
        self.followers.tell({"now": moment.now, "free": moment.free, **call})


# --- The followers -----------------------------------------------------------------------------------------------


class FollowingBatch(DecodeBatch):
    """Takes the tokens that the leader has sampled."""

    def __init__(self, runner: Runner, collective: Collective, hear: Callable[[], Message]) -> None:
        super().__init__(runner)
        self._collective = collective
        self._hear = hear

    def read(self) -> list[Step]:
        """The tokens that the model is running on, and who ends with them; waits for the leader."""
        sampled = [row for row, sampled in enumerate(self._sampled) if sampled]
        verdicts: list[Verdict] = self._hear()["read"]
        self._sampled = [True] * len(self)
        return [self._told(row, *verdict) for row, verdict in zip(sampled, verdicts, strict=True)]

    def _told(self, row: int, token: int | None, finished: FinishReason | None, suspect: bool) -> Step:
        sequence = self.sequences[row]
        sequence.suspect = suspect
        if token is not None:
            sequence.answer.append(token)
        return Step(sequence, None if token is None else TokenEvent(token), finished)

    def sample(self) -> None:
        """Each row's next token, as soon as the leader has it; does not wait for it."""
        if self._logits is None or not self.sequences:
            return
        self._logits = None
        self._tokens = _agreed(self._tokens, self._collective, self._runner)


@dataclass
class FollowingScheduler(Scheduler):
    """Does what the leader's does."""

    collective: Collective = field(kw_only=True)
    hear: Callable[[], Message] = field(kw_only=True)
    """The leader's next message; waits for it."""
    _moment: Moment = field(init=False, default_factory=Moment)

    def __post_init__(self) -> None:
        self._moment.govern(self.guard)
        super().__post_init__()

    def new_batch(self) -> DecodeBatch:
        """An empty decode batch."""
        return FollowingBatch(self.runner, self.collective, self.hear)

    def follow(self) -> None:
        """Do what the leader tells, until it closes; closing this one as well is left to the caller."""
        for message in iter(self.hear, {"close": True}):
            self._moment.now, self._moment.free = message.pop("now"), message.pop("free")
            self._do(message)

    def _do(self, message: Message) -> None:
        match message:
            case {"step": rates}:
                self.pace.rate, self.pace.slow_rate, self.pace.step = rates
                self.step()
            case {"submit": request}:
                self.submit(from_message(request))
            case {"cancel": request_ids}:
                self.cancel(frozenset(request_ids))
            case {"resize": (pool, prefix_cache)}:
                self.resize(pool, prefix_cache)
            case {"rest": _}:
                self.rest()
            case _:
                raise ValueError(f"the leader says {sorted(message)}, which means nothing here")


# --- Requests, as far as followers need them ---------------------------------------------------------------------


def to_message(request: EngineRequest) -> Message:
    """A request without all that only concerns sampling."""
    common = {"id": request.id, "priority": request.priority, "deadline": request.deadline}
    if isinstance(request, EmbeddingRequest):
        return {**common, "inputs": request.inputs, "pooling": request.pooling}
    return {
        **common,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "prompt_logprobs": request.prompt_logprobs,
        "images": [_image_to_message(image) for image in request.images],
        "adapter": request.adapter and {"index": request.adapter.index, "digest": request.adapter.digest.hex()},
    }


def from_message(message: Message) -> EngineRequest:
    """The request that `to_message` has made it of."""
    if "inputs" in message:
        return EmbeddingRequest(**message | {"inputs": tuple(map(tuple, message["inputs"]))})
    images = tuple(map(_image_from_message, message["images"]))
    adapter = message["adapter"] and Adapter(message["adapter"]["index"], bytes.fromhex(message["adapter"]["digest"]))
    changed = {"prompt": tuple(message["prompt"]), "images": images, "adapter": adapter}
    return GenerationRequest(**message | changed, sampling=SamplingParameters())


def _image_to_message(image: PromptImage) -> Message:
    return {
        "start": image.start,
        "count": image.count,
        "shape": image.pixels.shape,
        "pixels": base64.b64encode(image.pixels.tobytes()).decode(),
        "digest": image.digest.hex(),
    }


def _image_from_message(message: Message) -> PromptImage:
    pixels = np.frombuffer(base64.b64decode(message["pixels"]), np.uint8).reshape(message["shape"])
    return PromptImage(message["start"], message["count"], pixels, bytes.fromhex(message["digest"]))
