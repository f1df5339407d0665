"""What ``test_schemathesis`` changes in the requests that Schemathesis makes up; loaded by its command line."""

import os
from typing import Any

import schemathesis

MODEL = os.environ["SCHEMATHESIS_MODEL"]


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: schemathesis.Case, _kwargs: dict[str, Any]) -> None:
    """Ask for a model that is there, short answers and time enough; what is wrong with a request stays wrong."""
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and body["model"]:
        body["model"] = MODEL
    if not case.path.endswith(("completions", "infill")):
        return
    limit = "n_predict" if case.path.endswith("infill") else "max_tokens"
    body.setdefault(limit, 2)
    if body[limit] in (None, -1) or (is_integer(body[limit]) and body[limit] > 2):
        body[limit] = 2
    if is_number(body.get("timeout")) and 0 < body["timeout"] <= 86400:
        body["timeout"] = 86400
    for name in ("n", "n_cmpl", "best_of"):
        if is_integer(body.get(name)) and 2 < body[name] <= 128:
            body[name] = 2


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
