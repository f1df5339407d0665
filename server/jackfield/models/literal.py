"""Encoding what somebody wrote, whatever it looks like."""

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend

from jackfield.models.encoding import encoding

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_MARK = "\u263a"


class LiteralEncoder:
    """Encodes pieces of somebody's text: what looks like a special token in it is text like any other.

    Args:
        backend: the tokenizer.
        controls: tokens to be treated as special ones although the tokenizer does not call them so.
    """

    def __init__(self, backend: Any, controls: Collection[str]) -> None:
        self._backend = backend
        tokens = backend.get_added_tokens_decoder().values()
        self._controls = [token for token in tokens if token.special or token.content in controls]
        self._look_alike = re.compile("|".join(re.escape(token.content) for token in self._controls) or r"(?!)")
        spaced = self._encoding("a").tokens[0].startswith(_SPACE)
        self._mark = len(self._encoding(_MARK)) if spaced else 0

    def __call__(self, text: str, *, inside: bool = False) -> list[int]:
        """Token ids; ``inside`` a text, where SentencePiece's tokenizers put no space before it."""
        if not (inside and self._mark):
            return list(self._encoding(text).ids)
        # As Llama's and Mistral's own code does it: the space goes before a character that is then taken away.
        return list(self._encoding(_MARK + text).ids[self._mark :])

    def _encoding(self, text: str) -> Any:
        # Copying a tokenizer takes a second, and few texts are about special tokens.
        backend = self._literal if self._look_alike.search(text) else self._backend
        return encoding(backend, text, special=False)

    @cached_property
    def _literal(self) -> Any:
        copy = Backend.from_str(self._backend.to_str())
        copy.add_special_tokens(self._controls)
        copy.encode_special_tokens = True
        return copy
