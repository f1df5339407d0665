"""Rewriting JSON Schemas so that more of them can be enforced, without a change of meaning."""

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

EFFORT = 2_000_000
"""Branches times characters: comparing more of them with each other would take seconds, and nobody writes so many."""

PAIRS = 10_000
"""Of lists or objects to compare, which takes long."""

TYPES = ("null", "boolean", "object", "array", "number", "string")


def enforceable(schema: Any) -> Any:
    """The schema with ``anyOf`` for each ``oneOf`` of which no two branches take the same value.

    Grammars have no "exactly one of"; where the branches exclude each other, "at least one of" is the same.
    """
    return _rewritten(schema, schema)


def _rewritten(schema: Any, root: Any) -> Any:
    if isinstance(schema, list):
        return [_rewritten(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rewritten = {key: _rewritten(value, root) for key, value in schema.items()}
    branches = rewritten.get("oneOf")
    if isinstance(branches, list) and "anyOf" not in rewritten and _exclude_each_other(branches, root):
        del rewritten["oneOf"]
        rewritten.pop("discriminator", None)
        rewritten["anyOf"] = branches
    return rewritten


def _exclude_each_other(branches: list[Any], root: Any) -> bool:
    if len(branches) * len(json.dumps(branches)) > EFFORT:
        return False
    resolved = [_resolved(branch, root) for branch in branches]
    try:
        return all(_exclusive(one, other, root) for one, other in combinations(resolved, 2))
    except (TypeError, AttributeError):
        # What is no schema is refused by whoever has to enforce it.
        return False


def _exclusive(one: Any, other: Any, root: Any) -> bool:
    """Whether it is plain to see that no value fits both."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    if _types(one).isdisjoint(_types(other)):
        return True
    if {"object"} != _types(one) or {"object"} != _types(other):
        return _values(one) is not None and _values(other) is not None and not _shared(one, other)
    required = set(one.get("required") or ()) & set(other.get("required") or ())
    return any(_told_apart(one, other, name, root) for name in required)


def _told_apart(one: Mapping[str, Any], other: Mapping[str, Any], name: str, root: Any) -> bool:
    """Whether a property that both require has values of which none fits both."""
    first = _resolved((one.get("properties") or {}).get(name), root)
    second = _resolved((other.get("properties") or {}).get(name), root)
    known = _values(first) is not None and _values(second) is not None
    return known and not _shared(first, second)


def _shared(one: Any, other: Any) -> bool:
    first, second = _values(one) or (), _values(other) or ()
    try:
        return not set(first).isdisjoint(second)
    except TypeError:  # lists or objects
        return len(first) * len(second) > PAIRS or any(value in second for value in first)


def _values(schema: Any) -> list[Any] | None:
    """All values that a schema takes, if it lists them."""
    if not isinstance(schema, dict):
        return None
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _types(schema: Mapping[str, Any]) -> set[str]:
    named = schema.get("type", list(TYPES))
    return {"number" if name == "integer" else name for name in ([named] if isinstance(named, str) else named)}


def _resolved(schema: Any, root: Any) -> Any:
    """What a reference within the document points to."""
    for _ in range(16):
        if not isinstance(schema, dict) or "$ref" not in schema or not str(schema["$ref"]).startswith("#/"):
            return schema
        target = root
        for part in schema["$ref"][2:].split("/"):
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        schema = target
    return None
