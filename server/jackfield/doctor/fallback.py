"""Whether somebody else answers when an upstream cannot, tried with upstreams that fail on purpose."""

import time
from collections.abc import Iterator

from jackfield.doctor.finding import Finding, failure, ok
from jackfield.doctor.front import FAILURES, FAULTS, VISITED, events, front
from jackfield.doctor.visit import Json, Visit, text_of

BREAKS = FAULTS[-1]


def fallback_checks(visit: Visit) -> Iterator[Finding]:
    """Fallback, the circuit breaker and a stream that breaks, in front of the visited server; and its own route."""
    with front(visit) as own:
        yield _falls_back(own)
        yield _leaves_alone(own)
        yield _breaks(own)
    yield from _route(visit)


def _falls_back(own: Visit) -> Finding:
    started = time.perf_counter()
    for fault in FAULTS:
        answer = _asked(own, fault)
        if (came := _attempts(answer)) != [(fault, "failed"), (VISITED, "answered")] or not text_of(answer):
            return failure("fallback", f"Where the first upstream {fault}, this came of it: {came}.")
    seconds = time.perf_counter() - started
    told = f"Where the first upstream {', '.join(FAULTS)}, this server answers: {len(FAULTS)} times in {seconds:.1f} s."
    return ok("fallback", told, seconds=seconds)


def _leaves_alone(own: Visit) -> Finding:
    for _ in range(FAILURES + 1):
        answer = _asked(own, "fails")
    first = (answer.get("jackfield") or {}).get("attempts", [{}])[0]
    if first.get("reason") != "circuit_open":
        return failure("circuit breaker", f"An upstream that has failed {FAILURES} times is still asked: {first}.")
    return ok("circuit breaker", f"An upstream that has failed {FAILURES} times is left alone for a while.")


def _breaks(own: Visit) -> Finding:
    """Half of an answer has been sent, so nobody else can begin anew."""
    said = events(own, BREAKS)
    if not any("error" in event for event in said):
        return failure("broken streams", "A stream that broke in its middle ended without an error.")
    return ok("broken streams", "A stream that breaks in its middle ends with an error that says so.")


def _route(visit: Visit) -> Iterator[Finding]:
    attempts = _attempts(_asked(visit, visit.model))
    if attempts:
        told = ", then ".join(f"{backend} ({outcome})" for backend, outcome in attempts)
        yield ok("route", f"{visit.model} has one, and just now it went to {told}.")


def _asked(visit: Visit, model: str) -> Json:
    return visit.chat("Say hello.", model=model, max_tokens=8, jackfield=True)


def _attempts(answer: Json) -> list[tuple[str, str]]:
    told = (answer.get("jackfield") or {}).get("attempts") or []
    return [(one["backend"], one["outcome"]) for one in told]
