"""Answers that somebody has graded: JSON lines, one answer each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from jackfield.errors import InvalidRequestError


class GradedAnswer(BaseModel):
    """A line. Whatever else stands in it is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    factors: dict[str, FiniteFloat] = Field(min_length=1)
    """As the answer carried them."""
    correct: bool
    model: str | None = Field(default=None, min_length=1)
    """None: the one that is named on the command line."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A file's answers of one model."""

    model: str
    answers: list[GradedAnswer]
    others: int
    """Answers of other models, which were passed over."""


def read(file: Path, model: str | None) -> Graded:
    """The answers of ``model``, or of the only one in the file.

    Raises:
        InvalidRequestError: a line is wrong, or it is not clear which model is meant.
    """
    answers = list(_lines(file))
    named = sorted({answer.model for answer in answers if answer.model})
    model = model or _only(named)
    own = [answer for answer in answers if answer.model in (model, None)]
    if not own:
        raise InvalidRequestError(
            f"{file} has no answer of {model}.", suggestions=(f"Use --model with one of: {', '.join(named)}.",)
        )
    return Graded(model, own, len(answers) - len(own))


def _only(named: list[str]) -> str:
    if len(named) == 1:
        return named[0]
    there = (
        f"The answers are from {len(named)} models." if named else "The answers do not say which model they are from."
    )
    suggestion = f"Use --model with one of: {', '.join(named)}." if named else "Say it with --model NAME."
    raise InvalidRequestError(there, suggestions=(suggestion,))


def _lines(file: Path) -> Iterator[GradedAnswer]:
    with file.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _answer(line, f"{file}, line {number}")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{file} is not UTF-8 text: {error}.") from error


def _answer(line: str, place: str) -> GradedAnswer:
    try:
        return GradedAnswer.model_validate(_object(line))
    except ValidationError as error:
        problems = (_problem(one["loc"], one["msg"]) for one in error.errors(include_url=False, include_input=False))
        reason = "; ".join(problems)
    except ValueError as error:
        reason = f"this is no JSON object ({error})"
    raise InvalidRequestError(
        f"{place}: {reason}.",
        suggestions=('A line looks like {"model": "starter", "factors": {...}, "correct": true}.',),
    )


def _object(line: str) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"but {type(found).__name__}")
    return found


def _problem(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message[0].lower()}{message[1:]}"
