"""The tools that a request offers to the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regex
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry

JsonObject = dict[str, Any]

PATTERN_SECONDS = 0.05
"""For one of the client's regular expressions, which could keep the event loop busy for ever."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Args:
        name: the function's.
        parameters: JSON Schema of its arguments.
        enforced: whether a grammar holds arguments to that schema from where they begin, so that they can go out as
            they come: there is no need to see all of them first.
    """

    name: str
    parameters: JsonObject = field(hash=False)
    enforced: bool = False

    def fits(self, arguments: object) -> bool:
        """Whether these are arguments of the function."""
        try:
            return isinstance(arguments, dict) and self._validator.is_valid(arguments)
        except Exception:  # a schema that is none: whoever wrote it has to live with any object
            return True

    @cached_property
    def _validator(self) -> Any:
        # Without the registry, references to other documents would be fetched.
        return _Validator(self.parameters, registry=Registry())

    @cached_property
    def in_tags(self) -> bool:
        """Whether a grammar can also hold arguments to the schema that are not JSON but stand in a tag each."""
        properties = self.parameters.get("properties", {})
        composed = self.parameters.keys() & {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"}
        if not self.enforced or composed or not isinstance(properties, dict):
            return False
        texts = [schema for name, schema in properties.items() if self.takes_text(name)]
        return all(regex.fullmatch(r"[^>\n]+", name) for name in properties) and all(map(_is_any_text, texts))

    def takes_text(self, parameter: str) -> bool:
        """Whether this parameter is a string and nothing else."""
        schema = self.schema_of(parameter)
        return isinstance(schema, dict) and (schema.get("type") == "string" or _is_text_enum(schema))

    def schema_of(self, parameter: str) -> Any:
        """The schema of one parameter; None if the function does not name it."""
        properties = self.parameters.get("properties")
        return properties.get(parameter) if isinstance(properties, dict) else None


class Tools:
    """All of them, by name."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __bool__(self) -> bool:
        return bool(self._tools)

    def get(self, name: object) -> Tool | None:
        """The tool of that name, if it is offered."""
        return self._tools.get(name) if isinstance(name, str) else None

    @property
    def names(self) -> frozenset[str]:
        """All names."""
        return frozenset(self._tools)


def _is_any_text(schema: Mapping[str, Any]) -> bool:
    """Whether it is one of a list of texts, or may be any."""
    return _is_text_enum(schema) or schema.keys().isdisjoint({"pattern", "format", "const", "minLength", "maxLength"})


def _is_text_enum(schema: Mapping[str, Any]) -> bool:
    values = schema.get("enum")
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _matches(pattern: str, text: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except (TimeoutError, regex.error):
        return True


def _pattern(validator: Any, pattern: str, instance: object, schema: object) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: object, schema: object
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties}
)
