"""What every model of the wire is made of: three base classes, strict scalars and readable refusals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

TAG = "="
"""Marks the tags of unions, so that they can be told from the client's own keys in the path of an error."""


class RequestModel(BaseModel):
    """Instructions to the server: a key it does not know is refused, ``null`` is the same as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RequestBody(RequestModel):
    """All that a client sends to an endpoint."""

    ignored_on_purpose: ClassVar[Mapping[str, str]] = {}
    """Fields that change nothing here, by name, and why."""
    hints: ClassVar[Mapping[str, str]] = {}
    """What to do instead of sending fields that other endpoints or servers know."""

    def ignored(self) -> dict[str, str]:
        """The fields of this request that change nothing, and why: to be logged once."""
        return {name: why for name, why in self.ignored_on_purpose.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        value: object = self
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None


class TolerantModel(BaseModel):
    """What clients bring back from elsewhere (messages, tools): keys the server does not know are kept and unused."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class AnswerModel(BaseModel):
    """What the server sends. A field that was never set is left out, unless it is in ``always``."""

    model_config = ConfigDict(extra="forbid")

    always: ClassVar[tuple[str, ...]] = ()
    """Fields that are sent although nobody set them: constants, and the nulls that strict clients insist on."""
    never_null: ClassVar[tuple[str, ...]] = ()
    """Fields that are left out when they are None, since strict clients do not take ``null`` for them."""

    def model_post_init(self, context: Any, /) -> None:
        """Settle which fields are sent."""
        sent = self.__pydantic_fields_set__
        sent.update(self.always)
        for name in self.never_null:
            if getattr(self, name) is None:
                sent.discard(name)

    def to_json(self) -> bytes:
        """The body, or one event's data: a few microseconds for a chunk."""
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True)


def refusal(code: str, message: str, *, at: str = "", suggestions: tuple[str, ...] = ()) -> PydanticCustomError:
    """An error for a validator to raise; ``{param}`` in the message becomes the field's path, ``at`` is added to it."""
    return PydanticCustomError(code, "{message}", {"message": message, "at": at, "suggestions": suggestions})


def integral(value: Any) -> Any:
    """JSON knows one kind of number: 1.0 is an integer, as JSON Schema has it; 1.5, "1" and true are not."""
    return int(value) if type(value) is float and value.is_integer() else value


Integral = BeforeValidator(integral)
Text = Annotated[str, Field(min_length=1)]
JsonObject = dict[str, Any]


def by_kind(kinds: Mapping[type, str], expected: str) -> Discriminator:
    """Choose a union's member by the JSON type of the value."""

    def tag(value: Any) -> str | None:
        return kinds.get(dict if isinstance(value, BaseModel) else type(value))

    return Discriminator(tag, custom_error_type="expected", custom_error_message=expected)


def by_key(key: str) -> Discriminator:
    """Choose a union's member by the string under ``key``; goes together with `KnownTag`, which checks it first."""

    def tag(value: Any) -> str:
        return f"{TAG}{value[key] if isinstance(value, dict) else getattr(value, key)}"

    return Discriminator(tag)


class _Checked:
    """Runs ``check`` before the annotated type sees the value."""

    check: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))


@dataclass(frozen=True, eq=False)
class Unsupported(_Checked):
    """A field of the official API that is not supported here: anything but ``null`` (or ``harmless``) is refused."""

    suggestion: str
    harmless: tuple[str | bool, ...] = ()

    def check(self, value: Any) -> Any:
        """Refuse whatever is set."""
        # 0 equals False, and is another thing in JSON.
        if value is None or (type(value), value) in [(type(one), one) for one in self.harmless]:
            return value
        raise refusal("unsupported_parameter", "'{param}' is not supported here.", suggestions=(self.suggestion,))


@dataclass(frozen=True, eq=False)
class KnownTag(_Checked):
    """An object whose ``key`` says what it is: refuse what is not known before anything else is looked at."""

    key: str
    known: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Official values that are not supported here, and what to do instead."""
    optional: bool = False

    def check(self, value: Any) -> Any:
        """Refuse an object without a known tag."""
        if isinstance(value, BaseModel) or (self.optional and isinstance(value, dict) and self.key not in value):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("expected", "an object")
        self._check_tag(value)
        return value

    def _check_tag(self, value: dict[str, Any]) -> None:
        if self.key not in value:
            raise refusal("missing_required_parameter", "Missing required parameter: '{param}'.", at=self.key)
        tag = value[self.key]
        if not isinstance(tag, str):
            raise refusal("invalid_type", "Invalid type for '{param}': expected a string.", at=self.key)
        if tag in self.refused:
            message = f"Invalid value for '{{param}}': {tag!r} is not supported here."
            raise refusal("unsupported_value", message, at=self.key, suggestions=(self.refused[tag],))
        if tag not in self.known:
            raise PydanticCustomError("unknown_tag", "{tag}", {"tag": tag, "known": self.known, "at": self.key})
