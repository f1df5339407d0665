"""What another server's refusals mean for whoever asked this one."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from jackfield.errors import (
    InvalidRequestError,
    JackfieldError,
    LoopError,
    UnsupportedError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamLimitError,
    UpstreamTimeoutError,
)

CONTEXT = "context_length_exceeded"
LONGEST_WAIT = 3600


def refused(
    name: str, status: int, headers: Mapping[str, str], body: bytes, *, model: str, path: str
) -> JackfieldError:
    """The error that stands for an answer that is none.

    Args:
        name: the upstream's.
        status: HTTP's.
        headers: the answer's.
        body: the answer's.
        model: as the upstream was asked for it.
        path: what it was asked.
    """
    told = _told(body)
    message, param = _message(told, status), _text(told.get("param"))
    no_such_model = bool(told.get("code") == "model_not_found" or _UNKNOWN_MODEL.search(message))
    names_model = no_such_model or "model" in message.lower()
    status = 404 if status == 400 and no_such_model else status
    if status == 501 or (status in (400, 404, 422) and _UNSUPPORTED.search(message)):
        return UnsupportedError(f"Upstream {name} refuses: {message}", param=param, suggestions=(ELSEWHERE,))
    if status in (400, 413, 422):
        suggestions = _suggestions(told) or (f"Correct the request: upstream {name} has refused it.",)
        return InvalidRequestError(message, param=param, code=_code(told, message), suggestions=suggestions)
    if status in _LACKING and path not in EVERYWHERE and not names_model:
        return UnsupportedError(
            f"Upstream {name} has no {path}.",
            suggestions=(
                f"Let the model's route lead to a server that has {path}: another Jackfield has all of them.",
                "Name a model that is served here, see GET /v1/models.",
            ),
        )
    if status == 404 and told and not names_model:
        return _nothing_there(name, path, message)
    if status in _MISTAKES:
        return _mistake(name, model, status, message)
    wait = _seconds(headers)
    again = (f"Try again in {wait} seconds.", "Let the model's route go on with somebody else.")
    late = UpstreamTimeoutError(f"Upstream {name} took too long: {message}", suggestions=again)
    known: dict[int, JackfieldError] = {
        408: late,
        429: UpstreamLimitError(f"Upstream {name} refuses: {message}", retry_after=wait, suggestions=again),
        503: UpstreamBusyError(f"Upstream {name} has no room: {message}", retry_after=wait, suggestions=again),
        504: late,
        508: LoopError(),
    }
    failed = UpstreamError(f"Upstream {name} failed: {message}", suggestions=("Send the request again.",))
    return known.get(status, failed)


def told_status(error: object) -> int:
    """HTTP's status for what is told without one, as in a stream that has begun.

    Args:
        error: as it is told: OpenAI's envelope has it as its content.
    """
    told = error if isinstance(error, dict) else {}
    # vLLM, llama.cpp, LiteLLM and OpenRouter repeat the status there.
    if re.fullmatch("[45][0-9][0-9]", str(told.get("code"))):
        return int(told["code"])
    return next((_STATUSES[word] for name in _SAYING if (word := str(told.get(name))) in _STATUSES), 500)


_SAYING = ("code", "type", "category")
_STATUSES = {
    "upstream_loop": 508,
    "upstream_timeout": 504,
    "upstream_unavailable": 503,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "invalid_request_error": 400,
    "busy": 503,
    "memory": 503,
    "engine": 503,
}
"""What OpenAI's and Jackfield's words in an error mean; nothing else is the client's to mend, or over before long."""

EVERYWHERE = ("/chat/completions", "/completions")
"""All such servers have them."""

ELSEWHERE = "Ask for it from a model whose server can do it, see GET /v1/models."

_UNSUPPORTED = re.compile(
    r"\b(not|n't)( currently| yet)? support|\bunsupported\b|\bonly supported for models\b"
    r"|\b(unknown|unexpected|unrecognized)( request)? (field|parameter|argument)|\bextra inputs are not permitted\b",
    re.IGNORECASE,
)
"""How servers say that they cannot do it, whatever the status: vLLM of ``suffix``, or of a model without embeddings.

Fields that nobody knows do not come so far: those that a server does not know are Jackfield's own, or newer than it.
"""

_UNKNOWN_MODEL = re.compile(r"\binvalid model name\b", re.IGNORECASE)
"""How LiteLLM's proxy says, with 400, that it does not know a model."""

_RAY = re.compile(r"Message: (.*?)(?: \(Request ID: [^)]*\))?, Internal exception: ", re.DOTALL)
"""Around what Ray Serve LLM has to say; after it comes where in its code that happened."""

_LACKING = (404, 405)
_MISTAKES = (401, 403, 404)
"""Our own: the settings are wrong."""


def _nothing_there(name: str, path: str, message: str) -> UpstreamError:
    """Another place was asked than that server has, or has yet: Ray Serve listens before it has anything to serve."""
    return UpstreamError(
        f"Upstream {name} has nothing at {path}: {message}",
        suggestions=(
            f"Look whether upstreams.{name}.url is right: for most servers it ends in /v1.",
            "Try again later: what is served there may not have started yet.",
        ),
    )


def _mistake(name: str, model: str, status: int, message: str) -> UpstreamError:
    if status == 404:
        return UpstreamError(
            f"Upstream {name} does not know the model {model!r}.",
            code="upstream_model_not_found",
            suggestions=("Say in the route what it is called there: { backend = ..., model = ... }.",),
        )
    return UpstreamError(
        f"Upstream {name} does not accept this server's key: {message}",
        code="upstream_unauthorized",
        suggestions=(f"Set upstreams.{name}.api_key or api_key_env to a key of that server.",),
    )


def _told(body: bytes) -> dict[str, Any]:
    """OpenAI's envelope, or what some servers have in its place; of one that is cut, what there is."""
    try:
        found = from_json(body, allow_partial="trailing-strings" if body.startswith(b"{") else "off")
    except ValueError:
        return _in_plain_words(body)
    if not isinstance(found, dict):
        return {}
    error = found.get("error", found)
    return error if isinstance(error, dict) else {"message": error}


def _in_plain_words(body: bytes) -> dict[str, Any]:
    """The first line of a text. Whole pages and tracebacks say nothing to a client."""
    line = body.decode(errors="replace").strip().partition("\n")[0]
    return {} if not line or line.startswith("<") else {"message": line[:300]}


def _message(told: Mapping[str, Any], status: int) -> str:
    message = str(told.get("message") or _detail(told.get("detail")) or f"status {status}")
    wrapped = _RAY.match(message)
    return (wrapped[1] if wrapped else message)[:2000]


def _detail(told: object) -> str | None:
    """FastAPI's word for it: a text, or what is wrong where."""
    if not isinstance(told, list):
        return _text(told)
    wrong = [one for one in told if isinstance(one, dict) and isinstance(one.get("loc"), list)]
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one.get('msg')}" for one in wrong)


def _suggestions(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Another Jackfield's own."""
    found = told.get("suggestions")
    return tuple(str(one)[:500] for one in found[:5]) if isinstance(found, list) else ()


def _code(told: Mapping[str, Any], message: str) -> str | None:
    # vLLM gives no code for it, but OpenAI's words; llama.cpp a type.
    too_long = "maximum context length" in message or told.get("type") == "exceed_context_size_error"
    code = CONTEXT if too_long else _text(told.get("code"))
    # LiteLLM repeats the status there.
    return None if code is None or code.isdecimal() else code


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(headers: Mapping[str, str]) -> int:
    value = headers.get("retry-after", "")
    return min(max(1, int(value[:9])), LONGEST_WAIT) if value.isdecimal() else 5
