"""A model's route: who is asked for an answer, and who else when that fails."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from starlette.requests import Request

from jackfield.api.borrowing import borrow
from jackfield.api.reply import Reply
from jackfield.backends.begun import Begun
from jackfield.backends.remote import remote_model
from jackfield.backends.route import Standing, Wants, estimated_tokens, needs, obstacle
from jackfield.backends.upstream import TRAIL, onward
from jackfield.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    InvalidRequestError,
    JackfieldError,
    NoBackendError,
    ShuttingDownError,
)
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import Entry, ServedModel
from jackfield.protocol.asking import Asking
from jackfield.settings.upstreams import OWN, RouteStep

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=Asking)
Outcome = Literal["answered", "skipped", "failed"]


class Routing(Generic[Asked]):
    """One request's way along its model's route. Nothing has been sent to the client before it ends.

    Args:
        request: HTTP's.
        entry: the model.
        body: the request's.
        exchange: where it is told who is asked, and how that goes.
        asked: what the request says.
    """

    def __init__(self, request: Request, entry: Entry, body: bytes, exchange: Exchange, asked: Asked) -> None:
        self._request = request
        self._host: Host = request.app.state.host
        self._entry = entry
        self._asked = asked
        self._exchange = exchange
        self._tokens = estimated_tokens(body)
        self._deadline = None if asked.timeout is None else exchange.arrived + asked.timeout
        self._needs = needs(asked.model_dump(mode="json", by_alias=True, exclude_unset=True))
        self._failure: JackfieldError | None = None

    async def first(self, route: Sequence[RouteStep], make: Callable[[ServedModel], Reply[Asked]]) -> Reply[Asked]:
        """The first answer that somebody gives, or has begun to give.

        Raises:
            JackfieldError: nobody does; the error is the last one's.
        """
        trail = onward(self._request.headers.get(TRAIL, ""), self._host.id)
        for step in route:
            if (reason := self._obstacle(step)) is not None:
                self._tell(step.backend, "skipped", reason)
                continue
            self._tell_choice(step)
            try:
                return await self._ask(step, make, trail)
            except JackfieldError as error:
                if not _is_worth_another_try(error):
                    raise
                logger.info("%s: %s could not answer: %s", self._entry.id, step.backend, error.message)
                self._tell(step.backend, "failed", error.error_code or error.type)
                self._failure = error
        raise self._failure or self._nobody()

    def _tell(self, backend: str, outcome: Outcome, reason: str | None) -> None:
        self._exchange.tried(backend, outcome, reason)
        self._host.attempts[self._entry.id, backend, outcome, reason or ""] += 1

    def _tell_choice(self, step: RouteStep) -> None:
        """Tell of who is asked now, and why it is not somebody else."""
        failed = [one for one in self._exchange.attempts if one.outcome == "failed"]
        left_out = [f"{one.backend}: {one.reason}" for one in self._exchange.attempts]
        reason = f"next in the route after {', '.join(left_out)}" if left_out else "first in the route"
        if failed:
            self._exchange.fell_back(failed[-1].backend, step.backend, failed[-1].reason or "")
        self._exchange.answered_by(step.backend, reason)

    async def _ask(self, step: RouteStep, make: Callable[[ServedModel], Reply[Asked]], trail: str) -> Reply[Asked]:
        reply = make(await self._model(step, trail))
        reply.routed = True
        try:
            await reply.prepare()
            reply.answer.admit()
            begun = Begun(reply.answer)
            reply.answer = begun
            # A client that waits for a stream hears a sign of life before long, and then there is no way back.
            await begun.begin(self._host.settings.heartbeat if self._asked.stream else None)
        except BaseException:
            reply.give_up()
            raise
        self._tell(step.backend, "answered", None)
        return reply

    async def _model(self, step: RouteStep, trail: str) -> ServedModel:
        if step.backend == OWN:
            return await borrow(self._request, self._asked.model or None)
        upstream = self._host.upstreams[step.backend]
        return remote_model(self._entry.id, upstream, step.model or self._entry.id, {TRAIL: trail}, self._deadline)

    # --- Conditions --------------------------------------------------------------------------------------------------

    def _obstacle(self, step: RouteStep) -> str | None:
        left = None if self._asked.timeout is None else self._asked.timeout - self._exchange.seconds
        return obstacle(step, Wants(self._tokens, self._needs, left), self._standing(step))

    def _standing(self, step: RouteStep) -> Standing:
        if step.backend == OWN:
            return self._own_standing()
        upstream = self._host.upstreams[step.backend]
        breaker = upstream.breaker
        return Standing(breaker.state == "closed", breaker.lets_through, upstream.waiting)

    def _own_standing(self) -> Standing:
        served, profile = self._entry.served, self._entry.profile
        queue = served.engine.statistics.waiting + served.engine.statistics.reading if served else 0
        blind = profile is not None and "images" not in profile.capabilities
        return Standing(self._entry.state == "ready", True, queue, frozenset(["images"] if blind else []))

    def _nobody(self) -> NoBackendError:
        reasons = ", ".join(f"{one.backend}: {one.reason}" for one in self._exchange.attempts)
        return NoBackendError(
            f"Nobody can answer for {self._entry.id!r} now ({reasons}).",
            retry_after=5,
            suggestions=(
                "Try again after the seconds in Retry-After.",
                "Let its route end with a way that has no conditions.",
            ),
        )


def _is_worth_another_try(error: JackfieldError) -> bool:
    """Whether somebody else may do better: not where the request is wrong, or its time is over."""
    if isinstance(error, InvalidRequestError):
        fits_elsewhere = isinstance(error, ContextLengthExceededError)
        return fits_elsewhere or error.error_code in ("context_length_exceeded", "unsupported_value")
    if isinstance(error, DeadlineExceededError):
        return False
    # The end of this server; that of another one comes as an upstream's error.
    return not isinstance(error, ShuttingDownError)
