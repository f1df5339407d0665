"""From text to tokens, whatever the text, and without keeping others waiting."""

import os
from typing import Any

from jackfield.errors import InvalidRequestError

# One text at a time: more threads would not help, and the library complains about them when a process forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def encoding(backend: Any, text: str, *, special: bool) -> Any:
    """What a tokenizer of Hugging Face's makes of a text.

    Raises:
        InvalidRequestError: the tokenizer gives up on it.
    """
    try:
        # Not its `encode`, which does not let other threads go on meanwhile: seconds, for megabytes. Nor is
        # `encode_batch_fast` the same, where a space stands before the first word alone.
        return backend.encode_batch([text], add_special_tokens=special)[0]
    except BaseException as error:
        # Regular expressions that take too many steps, and other failures in Rust, which are no Exceptions.
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidRequestError(
            "The model's tokenizer gives up on the text.",
            code="invalid_value",
            suggestions=("Break up runs of millions of blanks, or of other characters without any between words.",),
        ) from error
