"""Which of the ways of a model's route a request may go, and why not the others."""

import re
import time
from dataclasses import dataclass
from typing import Literal

from jackfield.protocol.base import JsonObject
from jackfield.settings.upstreams import Capability, RouteStep

Reason = Literal["not_ready", "circuit_open", "declined", "queue", "context", "capability", "deadline"]
"""Why a way is left out."""

CHARACTERS = 4
"""A token stands for so many bytes of a request, roughly: other servers' tokenizers are not known."""

_BASE64 = rb"[\w+/=\\-]*"
_FILES = re.compile(rb'(?<!\\)"(data:[\w/\\+.;=-]{1,200};base64,%b|data"\s*:\s*"%b")' % (_BASE64, _BASE64))
"""Images and other files, as OpenAI's dialects have them and as Anthropic's has; not where a text speaks of such."""


@dataclass(frozen=True)
class Wants:
    """What there is to know of a request before anybody answers it.

    Args:
        tokens: of its prompt, as estimated; 0 where it is counted later.
        capabilities: what it needs.
        deadline: when its answer has to end, if it has a limit, on ``time.monotonic``'s clock.
        answer: whether it is an answer in words, rather than vectors or a count.
    """

    tokens: int = 0
    capabilities: frozenset[Capability] = frozenset()
    deadline: float | None = None
    answer: bool = True

    @property
    def seconds(self) -> float | None:
        """That are left."""
        return None if self.deadline is None else self.deadline - time.monotonic()


async def counting() -> Wants:
    """What there is to know of a text whose tokens are to be counted, however many they are."""
    return Wants(answer=False)


@dataclass(frozen=True)
class Standing:
    """How a backend stands.

    Args:
        ready: it could answer at once.
        lets_through: it may be asked at all.
        serves: it wants to answer this request.
        queue: requests that wait there for their first token.
        lacks: what it is known not to be able to do.
        answers_alone: it gives answers in words, and nothing else.
    """

    ready: bool = True
    lets_through: bool = True
    serves: bool = True
    queue: int = 0
    lacks: frozenset[Capability] = frozenset()
    answers_alone: bool = False


def estimated_tokens(body: bytes) -> int:
    """Of a request's body, without images."""
    return len(_FILES.sub(b"", body)) // CHARACTERS


def capabilities_needed(document: JsonObject) -> frozenset[Capability]:
    """What a request in the words of ``/v1/chat/completions`` or ``/v1/completions`` needs."""
    found: set[Capability] = set()
    if document.get("tools"):
        found.add("tools")
    # 0 asks completions for those of the tokens themselves.
    if document.get("logprobs") is not None and document["logprobs"] is not False:
        found.add("logprobs")
    shape = (document.get("response_format") or {}).get("type", "text")
    if shape != "text" or document.get("regex") or document.get("grammar"):
        found.add("structured_output")
    if any(part.get("type") == "image_url" for part in _parts(document)):
        found.add("images")
    return frozenset(found)


def _parts(document: JsonObject) -> list[JsonObject]:
    contents = [message.get("content") for message in document.get("messages", ())]
    return [part for content in contents if isinstance(content, list) for part in content]


def obstacle(step: RouteStep, wants: Wants, standing: Standing) -> Reason | None:
    """Why a request must not go this way, if it must not."""
    left = wants.seconds
    found: dict[Reason, bool] = {
        "circuit_open": not standing.lets_through,
        "declined": not standing.serves,
        "not_ready": step.ready and not standing.ready,
        "queue": step.max_queue is not None and standing.queue > step.max_queue,
        "context": step.context_length is not None and wants.tokens > step.context_length,
        "capability": _lacks(step, wants, standing),
        "deadline": step.min_seconds is not None and left is not None and left < step.min_seconds,
    }
    return next((reason for reason, stands in found.items() if stands), None)


def _lacks(step: RouteStep, wants: Wants, standing: Standing) -> bool:
    if standing.answers_alone and not wants.answer:
        return True
    able = wants.capabilities if step.capabilities is None else set(step.capabilities)
    return not wants.capabilities <= able - standing.lacks
