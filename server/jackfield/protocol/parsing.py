"""From the bytes of a request's body to a model, or to one readable error."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jackfield.errors import InvalidRequestError
from jackfield.protocol.base import TAG
from jackfield.protocol.hints import FOREIGN, OUT_OF_RANGE

T = TypeVar("T", bound=BaseModel)
Path = tuple[str | int, ...]

MAX_DEPTH = 128
"""Arrays and objects inside one another; deeper bodies would exhaust somebody's stack, here or further down."""


def parse(model_class: type[T], body: bytes) -> T:
    """Validate a request's body; whatever is wrong with it, `InvalidRequestError` says so."""
    return validate(model_class, load(body))


def validate(model_class: type[T], document: dict[str, Any]) -> T:
    """The same for a document that has been read."""
    try:
        return model_class.model_validate(document)
    except ValidationError as error:
        hints = {**FOREIGN, **getattr(model_class, "hints", {})}
        raise _explain(error.errors(include_url=False)[0], tuple(model_class.model_fields), hints) from None


def load(body: bytes) -> dict[str, Any]:
    """Read JSON strictly: one UTF-8 object, no key twice, finite numbers, text that can be encoded again."""
    if not body.strip():
        raise _not_json("The request body is empty.", "Send a JSON object.")
    document = _decode(body)
    _check(document, ())
    if not isinstance(document, dict):
        raise InvalidRequestError(
            f"The request body must be a JSON object, but it is {_kind(document)}.",
            code="invalid_type",
            suggestions=('Send an object with the endpoint\'s fields: {"model": ..., ...}.',),
        )
    return document


def _decode(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise _not_json(f"The request body is not UTF-8: bad byte at {error.start}.", "Encode it as UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        message = f"The request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise _not_json(message, "Use a JSON library to write it.") from None
    except ValueError:  # an integer of thousands of digits
        raise _not_json("The request body has a number that is too large.", "Use smaller numbers.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _not_json(f"The request body has the key {_short(twice)} twice in one object.", "Send each key once.")
    return result


def _constant(name: str) -> NoReturn:
    raise _not_json(f"The request body has the number {name}, which JSON does not know.", "Use finite numbers.")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _not_json("The request body has a number that is too large.", "Use smaller numbers.")
    return value


_HOLDERS = {str, dict, list}


def _check(value: Any, path: Path) -> None:
    """Refuse what is valid JSON and yet of no use: half a surrogate pair, and nesting without end."""
    if isinstance(value, str):
        _check_text(value, path)
    elif len(path) > MAX_DEPTH:
        raise _too_deep()
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            if isinstance(item, str | dict | list):
                _check(item, (*path, key))
    elif isinstance(value, list) and not _HOLDERS.isdisjoint(map(type, value)):  # else token ids, often 100,000
        for index, item in enumerate(value):
            if isinstance(item, str | dict | list):
                _check(item, (*path, index))


def _check_text(text: str, path: Path) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "The text has half of a surrogate pair (an escape from \\ud800 to \\udfff), which is no character.",
            param=_dotted(path) or None,
            code="invalid_value",
            suggestions=("Cut strings between characters, not between UTF-16 code units.",),
        ) from None


def _not_json(message: str, suggestion: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_json", suggestions=(suggestion,))


def _too_deep() -> InvalidRequestError:
    return _not_json(f"The request body is nested more than {MAX_DEPTH} levels deep.", "Flatten it.")


def _explain(error: ErrorDetails, fields: Iterable[str], hints: Mapping[str, str]) -> InvalidRequestError:
    """The first error that pydantic found, in words that say what to do."""
    context: dict[str, Any] = error.get("ctx", {})
    param = _dotted((*_visible(error["loc"]), *filter(None, [context.get("at")])))
    code, message, suggestions = _words(error, context, param, fields, hints)
    return InvalidRequestError(message, param=param or None, code=code, suggestions=suggestions)


Words = tuple[str, str, tuple[str, ...]]


def _words(
    error: ErrorDetails, context: Mapping[str, Any], param: str, fields: Iterable[str], hints: Mapping[str, str]
) -> Words:
    kind, value = error["type"], error["input"]
    if kind in _LIMITS:
        return _limit_words(kind, context, param, value)
    if kind == "expected" or kind in _EXPECTED:
        return _type_words(_EXPECTED.get(kind, error["msg"]), param, value)
    if kind == "extra_forbidden":
        return _unknown_words(param, fields if len(error["loc"]) == 1 else (), hints)
    if kind == "unknown_tag":
        return _choice_words(param, context["tag"], context["known"])
    if kind == "literal_error":
        return _literal_words(param, value, context["expected"])
    return _own_words(error, context, param)


_FIXED = {
    "too_short": ("empty_array", "Invalid '{param}': the array must not be empty."),
    "too_long": ("array_above_max_length", "Invalid '{param}': expected at most {max_length} items."),
    "string_too_short": ("empty_string", "Invalid '{param}': the string must not be empty."),
    "string_pattern_mismatch": ("invalid_value", "Invalid key '{param}': expected a token id, such as '15339'."),
}


def _own_words(error: ErrorDetails, context: Mapping[str, Any], param: str) -> Words:
    """What a validator of ours said, or at last pydantic itself."""
    if error["type"] in _FIXED:
        code, message = _FIXED[error["type"]]
        return code, message.format(param=param, **context), ()
    if error["type"] == "missing":
        return "missing_required_parameter", f"Missing required parameter: '{param}'.", (f"Send '{param}'.",)
    if "message" in context:
        return error["type"], context["message"].replace("{param}", param), context["suggestions"]
    return "invalid_value", f"Invalid value for '{param}': {error['msg'].lower()}.", ()


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _type_words(expected: str, param: str, value: Any) -> Words:
    return "invalid_type", f"Invalid type for '{param}': expected {expected}, but got {_kind(value)}.", ()


_LIMITS = {
    "greater_than_equal": ("ge", ">=", "below_min_value"),
    "greater_than": ("gt", ">", "below_min_value"),
    "less_than_equal": ("le", "<=", "above_max_value"),
}


def _limit_words(kind: str, context: Mapping[str, Any], param: str, value: Any) -> Words:
    key, relation, code = _LIMITS[kind]
    limit = context[key]
    noun = "integer" if isinstance(limit, int) else "decimal"
    message = (
        f"Invalid '{param}': expected a value {relation} {limit:{'d' if noun == 'integer' else 'g'}}, but got {{}}."
    )
    hint = OUT_OF_RANGE.get(param)
    return f"{noun}_{code}", message.format(_number(value)), (hint,) if hint else ()


def _unknown_words(param: str, fields: Iterable[str], hints: Mapping[str, str]) -> Words:
    near = get_close_matches(param, list(fields), n=1)
    hint = hints.get(param) or (f"Did you mean '{near[0]}'?" if near else "Leave it out.")
    return "unknown_parameter", f"Unknown parameter: '{param}'.", (hint,)


def _choice_words(param: str, value: str, known: Iterable[str]) -> Words:
    supported = ", ".join(f"'{name}'" for name in known)
    near = get_close_matches(value, list(known), n=1)
    suggestions = (f"Did you mean '{near[0]}'?",) if near else ()
    return "invalid_value", f"Invalid value for '{param}': {_short(value)}. Supported: {supported}.", suggestions


def _literal_words(param: str, value: Any, expected: str) -> Words:
    if not isinstance(value, str):
        return _type_words(expected, param, value)
    return "invalid_value", f"Invalid value for '{param}': {_short(value)}. Supported: {expected}.", ()


def _visible(location: Iterable[str | int]) -> Path:
    """The path in the client's document: without the tags of unions, and without pydantic's mark for a bad key."""
    return tuple(part for part in location if part != "[key]" and not str(part).startswith(TAG))


def _dotted(path: Path) -> str:
    return ".".join(str(part)[:64] for part in path)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return f"the number {_number(value)}"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def _number(value: float) -> str:
    digits = str(value)
    return digits if len(digits) <= 24 else f"{digits[:24]}..."


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
