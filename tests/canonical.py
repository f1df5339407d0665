"""One way to write a JSON Schema, so that two documents that mean the same compare equal."""

from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

PROSE = {"title", "description", "default", "examples", "discriminator", "$comment", "$defs"}
ACROSS_FIELDS = {"allOf", "if", "then", "not"}
"""Rules between fields; ``test_protocol.py`` compares those by what they accept."""
NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
KEYWORDS = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "maxProperties",
    ),
    "array": ("items", "minItems", "maxItems"),
    "string": ("enum", "const", "minLength", "maxLength", "pattern"),
    "integer": NUMBER,
    "number": NUMBER,
    "boolean": (),
    "null": (),
}


def canonical(schema: Schema, resolve: Callable[[Schema], Schema]) -> list[Schema]:
    """The variants that a schema allows, each with one type; fails at a keyword it does not know."""
    schema = resolve(schema)
    allowed = (
        PROSE | ACROSS_FIELDS | {"type", "anyOf", "oneOf"} | {name for names in KEYWORDS.values() for name in names}
    )
    assert not schema.keys() - allowed, f"unknown keywords: {schema.keys() - allowed}"
    if union := schema.get("anyOf") or schema.get("oneOf"):
        assert schema.keys() <= PROSE | {"anyOf", "oneOf"}
        variants = [variant for member in union for variant in canonical(member, resolve)]
    else:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        nullable = None in schema.get("enum", [None])
        variants = [_variant(type_, schema, resolve) for type_ in types if type_ != "null" or nullable]
    return sorted(variants, key=repr)


def _variant(type_: str, schema: Schema, resolve: Callable[[Schema], Schema]) -> Schema:
    kept = {name: schema[name] for name in KEYWORDS[type_] if name in schema}
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    if "enum" in kept:
        kept["enum"] = sorted(value for value in kept["enum"] if value is not None)
    if items := kept.pop("items", None):
        kept["items"] = canonical(items, resolve)
    return {"type": type_, **(_object(kept, resolve) if type_ == "object" else kept)}


def _object(schema: Schema, resolve: Callable[[Schema], Schema]) -> Schema:
    others = schema.get("additionalProperties", True)
    keys = schema.get("propertyNames", {})
    if patterns := schema.get("patternProperties"):
        [(pattern, others)] = patterns.items()
        keys = {"pattern": pattern}
    return {
        "properties": {
            name: canonical(member, resolve) for name, member in sorted(schema.get("properties", {}).items())
        },
        "required": sorted(schema.get("required", [])),
        "additionalProperties": others if isinstance(others, bool) else canonical(others, resolve),
        "propertyNames": keys,
        "maxProperties": schema.get("maxProperties"),
    }


def difference(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two canonical schemas disagree, in words."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted(ours.keys() | theirs.keys())
            for line in difference(ours.get(key, "absent"), theirs.get(key, "absent"), f"{path}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            line
            for index, (one, other) in enumerate(zip(ours, theirs, strict=True))
            for line in difference(one, other, f"{path}[{index}]")
        ]
    return [] if ours == theirs else [f"{path}: the models say {ours}, openapi.yaml says {theirs}"]
