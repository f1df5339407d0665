"""Answers that fill in a middle: what stands around the gap becomes the prompt, and no token of that leaves a trace."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jackfield.answer import Answer
from jackfield.engine.request import GenerationRequest
from jackfield.errors import UnsupportedError
from jackfield.models.fim import FillInTheMiddle
from jackfield.models.registry import ServedModel
from jackfield.text.stops import StopMatcher
from jackfield.text.stream import TextStream


def filler(model: ServedModel, param: str) -> FillInTheMiddle:
    """How the model fills in a middle; ``param`` is the field that asks for it.

    Raises:
        UnsupportedError: it does not.
    """
    if model.fim is None:
        raise UnsupportedError(
            f"{model.id} cannot fill in the middle: its tokenizer has no tokens for that.",
            param=param,
            suggestions=(
                "Serve a model that was trained for it, such as Qwen2.5-Coder.",
                "Use /v1/completions without 'suffix' to go on from a prefix.",
            ),
        )
    return model.fim


def ending(requests: Iterable[GenerationRequest], fim: FillInTheMiddle) -> list[GenerationRequest]:
    """The requests with an end at every token that is never part of a middle."""
    return [replace(request, stop_tokens=request.stop_tokens | fim.ends) for request in requests]


@dataclass
class Middle(Answer):
    """An answer that stands inside a text, so that a space at its beginning counts.

    ``matcher`` makes what ends a choice by its text, when stop strings alone will not do.
    """

    matcher: Callable[[], StopMatcher] | None = None

    def _text(self, request: GenerationRequest) -> TextStream:
        matcher = self.matcher() if self.matcher else StopMatcher(self.stops)
        return TextStream(self.model.tokenizer.decoder(inside=True), matcher, request.stop_tokens)
