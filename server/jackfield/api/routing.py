"""A model's route: who is asked for an answer, and who else when that fails."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from starlette.requests import Request

from jackfield.api.borrowing import borrow
from jackfield.backends.remote import PluggedModel, UpstreamModel
from jackfield.backends.route import Standing, Wants, obstacle
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
from jackfield.settings.upstreams import OWN, RouteStep

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Outcome = Literal["answered", "skipped", "failed"]
Ask = Callable[[ServedModel], Awaitable[Result]]
"""Has a model give what was asked for, or begin to."""


async def ask_route(
    request: Request, name: str | None, exchange: Exchange, wants: Callable[[], Awaitable[Wants]], ask: Ask[Result]
) -> Result:
    """What the first one on a model's route gives who can; without a route, the engine here.

    Args:
        request: HTTP's.
        name: the model's.
        exchange: where it is told who is asked, and how that goes.
        wants: what there is to know of the request; not asked for without a route.
        ask: for an answer.

    Raises:
        JackfieldError: nobody gives it; the error is the last one's.
    """
    host: Host = request.app.state.host
    entry, own = host.registry.meant(name)
    # An adapter is nobody else's.
    if own != entry.id or not (route := host.route(entry)):
        return await ask(await borrow(request, name))
    return await _Way(request, entry, exchange, await wants()).follow(route, ask)


class _Way:
    """One request's way along its model's route. Nothing has been sent to the client before it ends."""

    def __init__(self, request: Request, entry: Entry, exchange: Exchange, wants: Wants) -> None:
        self._request = request
        self._host: Host = request.app.state.host
        self._entry = entry
        self._wants = wants
        self._exchange = exchange
        self._failure: JackfieldError | None = None

    async def follow(self, route: Sequence[RouteStep], ask: Ask[Result]) -> Result:
        """The first answer.

        Raises:
            JackfieldError: nobody gives one.
        """
        trail = onward(self._request.headers.get(TRAIL, ""), self._host.id)
        for step in route:
            if (reason := obstacle(step, self._wants, self._standing(step))) is not None:
                self._log(f"{step.backend} is left out: {reason}")
                self._tell(step.backend, "skipped", reason)
                continue
            self._tell_choice(step)
            try:
                found = await ask(await self._model(step, trail))
            except JackfieldError as error:
                if not _is_worth_another_try(error):
                    raise
                self._log(f"{step.backend} could not answer: {error.message}")
                self._tell(step.backend, "failed", error.error_code or error.type)
                self._failure = error
            else:
                self._tell(step.backend, "answered", None)
                return found
        raise self._failure or self._nobody()

    def _log(self, what: str) -> None:
        logger.info("%s: %s", self._entry.id, what, extra={"request_id": self._exchange.info.id})

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

    async def _model(self, step: RouteStep, trail: str) -> ServedModel:
        if step.backend == OWN:
            return await borrow(self._request, self._entry.id)
        name, called, deadline = self._entry.id, step.model or self._entry.id, self._wants.deadline
        upstream = self._host.upstreams.get(step.backend)
        if upstream is None:
            begin = partial(self._host.plugged_answer, step.backend)
            return PluggedModel(name, called, deadline=deadline, begin=begin)
        headers = {TRAIL: trail, "X-Request-ID": self._exchange.info.id}
        return UpstreamModel(name, upstream, called, headers=headers, deadline=deadline, drain=self._host.drain)

    # --- Conditions --------------------------------------------------------------------------------------------------

    def _standing(self, step: RouteStep) -> Standing:
        if step.backend == OWN:
            return self._own_standing()
        upstream = self._host.upstreams.get(step.backend)
        if upstream is None:
            return self._host.standing(step.backend, self._exchange.info)
        breaker = upstream.breaker
        return Standing(breaker.is_well, breaker.lets_through, queue=upstream.waiting)

    def _own_standing(self) -> Standing:
        served, profile = self._entry.served, self._entry.profile
        queue = served.engine.statistics.waiting + served.engine.statistics.reading if served else 0
        blind = profile is not None and "images" not in profile.capabilities
        ready = self._entry.state == "ready" and self._entry.leaving is None
        return Standing(ready, queue=queue, lacks=frozenset(["images"] if blind else []))

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
