"""The models that are served, by name."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jackfield.engine.grammar import GrammarCompiler
from jackfield.engine.thread import Engine
from jackfield.errors import InvalidRequestError, ModelNotFoundError
from jackfield.models.embedding import EmbeddingSpec
from jackfield.models.fim import FillInTheMiddle, fill_in_the_middle
from jackfield.models.tokenizer import Tokenizer
from jackfield.vision.reader import ImageReader


@dataclass
class ServedModel:
    """A model that answers requests."""

    id: str
    tokenizer: Tokenizer
    engine: Engine
    context_length: int
    vocabulary: int
    defaults: Mapping[str, Any]
    """What the model's authors advise in ``generation_config.json``."""
    images: ImageReader | None = None
    """Reads images, if the model does."""
    embedding: EmbeddingSpec = field(default_factory=lambda: EmbeddingSpec(obstacle="its engine makes none"))
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles what constrains this model's answers."""
        return GrammarCompiler(self.tokenizer.source, self.vocabulary, sorted(self.tokenizer.end_tokens))

    @cached_property
    def fim(self) -> FillInTheMiddle | None:
        """How it fills in a middle, if its tokenizer has tokens for that."""
        return fill_in_the_middle(self.tokenizer)


class Registry:
    """All served models."""

    def __init__(self, models: list[ServedModel]) -> None:
        self._models = {model.id: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def choose(self, model_id: str | None) -> ServedModel:
        """The model of that name; without one, the only model there is.

        Raises:
            ModelNotFoundError: there is none of that name.
            InvalidRequestError: there are several, and none was named.
        """
        if model_id is not None:
            return self.get(model_id)
        if len(self._models) == 1:
            return next(iter(self))
        raise InvalidRequestError(
            "Missing required parameter: 'model'.",
            param="model",
            code="missing_required_parameter",
            suggestions=(f"Send one of: {', '.join(self._models) or 'no model is served'}.",),
        )

    def get(self, model_id: str) -> ServedModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: there is none; those that are served go on undisturbed.
        """
        try:
            return self._models[model_id]
        except KeyError:
            raise ModelNotFoundError(model_id, tuple(self._models)) from None
