"""A model that is elsewhere, as one that is served."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from jackfield.backends.chunks import SpokenTokens
from jackfield.backends.question import Question
from jackfield.backends.upstream import Upstream
from jackfield.models.registry import ServedModel

if TYPE_CHECKING:
    from jackfield.engine.thread import Engine

ANY_TOKEN = 2**63
"""Ids of tokens are checked by whoever knows them."""


@dataclass
class RemoteModel(ServedModel):
    """A model without weights, tokenizer and engine: all that can be done is to ask the question."""

    question: Question = field(kw_only=True)


def remote_model(
    name: str, upstream: Upstream, model: str, headers: Mapping[str, str], deadline: float | None
) -> RemoteModel:
    """The model of that name for one request, which an upstream knows as ``model``."""
    tokens = SpokenTokens()
    return RemoteModel(
        name,
        tokens.as_tokenizer(),
        # Nobody asks for it: see `jackfield.api.reply.Reply.prepare`.
        cast("Engine", None),
        context_length=0,
        vocabulary=ANY_TOKEN,
        defaults={},
        question=Question(upstream, model, tokens, headers, deadline),
    )
