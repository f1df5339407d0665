"""What ``test_schemathesis`` changes in the requests that Schemathesis makes up; loaded by its command line."""

import json
import os
from functools import cache
from typing import Any
from urllib.request import Request, urlopen

import schemathesis

MODEL = os.environ["SCHEMATHESIS_MODEL"]
URL = os.environ["SCHEMATHESIS_URL"]
LIMITS = {
    "completions": "max_tokens",
    "infill": "n_predict",
    "messages": "max_tokens",
    "responses": "max_output_tokens",
}
"""What limits an answer's tokens, by the end of the path."""


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: schemathesis.Case, _kwargs: dict[str, Any]) -> None:
    """Ask for what is there, short answers and time enough; what is wrong with a request stays wrong."""
    if str((case.path_parameters or {}).get("response_id", "")).startswith("resp_"):
        case.path_parameters["response_id"] = stored_response() if case.method == "DELETE" else kept_response()
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and body["model"]:
        body["model"] = MODEL
    if is_number(body.get("timeout")) and 0 < body["timeout"] <= 86400:
        body["timeout"] = 86400
    limit = LIMITS.get(case.path.rpartition("/")[2])
    if limit is None:
        return
    body.setdefault(limit, 2)
    if body[limit] in (None, -1) or (is_integer(body[limit]) and body[limit] > 2):
        body[limit] = 2
    for name in ("n", "n_cmpl", "best_of"):
        if is_integer(body.get(name)) and 2 < body[name] <= 128:
            body[name] = 2


@cache
def kept_response() -> str:
    return stored_response()


def stored_response() -> str:
    """The id of a response that has just been stored."""
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 1, "store": True}
    with urlopen(Request(f"{URL}/v1/responses", json.dumps(body).encode())) as answer:
        return str(json.load(answer)["id"])


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
