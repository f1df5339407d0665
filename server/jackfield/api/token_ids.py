"""Token ids that clients send."""

from jackfield.errors import InvalidRequestError
from jackfield.models.registry import ServedModel


def known_tokens(tokens: list[int], model: ServedModel, param: str) -> list[int]:
    """The tokens, all of which the model has.

    Raises:
        InvalidRequestError: it has not.
    """
    if unknown := [token for token in tokens if token >= model.vocabulary]:
        raise InvalidRequestError(
            f"The {param} has token {unknown[0]}, but this model's ids end at {model.vocabulary - 1}.",
            param=param,
            code="invalid_value",
            suggestions=("Tokenize with this model's own tokenizer.",),
        )
    return tokens
