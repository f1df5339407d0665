"""Text as clients write it: a string, strings, token ids, or lists of these."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from jackfield.protocol.base import Text, integral


def _integral_items(value: Any) -> Any:
    # Prompts of 100,000 token ids are common in evaluation: look at each id in Python only when that is needed.
    if isinstance(value, list) and float in set(map(type, value)):
        return [integral(item) for item in value]
    return value


TokenId = Annotated[int, Field(ge=0)]
AnyTokenIds = Annotated[list[TokenId], Field(fail_fast=True), BeforeValidator(_integral_items)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), BeforeValidator(_integral_items)]


def _prompt_kind(value: Any) -> str | None:
    if not isinstance(value, list):
        return "=string" if isinstance(value, str) else None
    if value and isinstance(value[0], list):
        return "=token_lists"
    return "=tokens" if value and not isinstance(value[0], str) else "=strings"


_BY_KIND = Discriminator(
    _prompt_kind,
    custom_error_type="expected",
    custom_error_message="a string, an array of strings, an array of token ids or an array of such arrays",
)
Prompt = Annotated[
    Annotated[str, Tag("=string")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), Tag("=strings")]
    | Annotated[TokenIds, Tag("=tokens")]
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), Tag("=token_lists")],
    _BY_KIND,
]
MOST_INPUTS = 2048
"""As OpenAI has it."""
Inputs = Annotated[
    Annotated[Text, Tag("=string")]
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True), Tag("=strings")]
    | Annotated[TokenIds, Tag("=tokens")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True), Tag("=token_lists")],
    _BY_KIND,
]
"""The same, of which none may be empty."""


def each(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts, however they were written."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)
