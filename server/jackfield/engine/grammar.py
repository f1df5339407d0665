"""Constrained generation: llguidance decides which tokens may come next."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from jackfield.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GrammarKind = Literal["json_schema", "regex", "lark"]


def _json_schema(source: str) -> str:
    # One way of spacing, as json.dumps does it: given the choice, small models write blanks for ever.
    spacing: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return LLMatcher.grammar_from_json_schema(source, defaults=spacing)


_CONVERT = {
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "lark": LLMatcher.grammar_from_lark,
}


class GrammarMatcher:
    """How far one answer has got in its grammar. Used on the engine thread only."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def advance(self, token: int) -> bool:
        """Take the token; True when the grammar allows nothing after it."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()

    @property
    def failed(self) -> bool:
        """Whether the grammar grew too complex on the way (llguidance has limits), so that the answer is not whole."""
        return self._matcher.is_error()

    def fill(self, bits: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next into row ``row`` of ``bits``, one bit a token."""
        fill_next_token_bitmask(self._matcher, bits, row)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar, shared by all requests that ask for the same."""

    _matcher: LLMatcher

    def start(self) -> GrammarMatcher:
        """A matcher at the beginning."""
        return GrammarMatcher(self._matcher.deep_copy())


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the last ones; safe to call from worker threads.

    Args:
        tokenizer: the contents of ``tokenizer.json``.
        vocabulary: tokens the model has logits for.
        end_tokens: ids that end an answer, allowed where the grammar is satisfied.
    """

    def __init__(self, tokenizer: str, vocabulary: int, end_tokens: Sequence[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = list(end_tokens)
        self._tokenizer = lru_cache(maxsize=1)(self._load)
        self.compile = lru_cache(maxsize=128)(self._compile)

    def _load(self) -> LLTokenizer:
        # Takes about a second for a large vocabulary, so only once somebody needs it.
        return LLTokenizer(self._source, n_vocab=self._vocabulary, eos_token=self._end_tokens or None)

    def _compile(self, kind: GrammarKind, source: str, param: str) -> Grammar:
        """Compile.

        Raises:
            InvalidRequestError: the grammar is wrong or asks for something that cannot be enforced; ``param`` names
                the request's field.
        """
        try:
            grammar = _CONVERT[kind](source)
        except ValueError as error:
            raise _refusal(str(error), param) from None
        matcher = LLMatcher(self._tokenizer(), grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        return Grammar(matcher)


def _refusal(reason: str, param: str) -> InvalidRequestError:
    first_line = reason.strip().splitlines()[0] if reason.strip() else "unknown reason"
    return InvalidRequestError(
        f"The grammar in {param} cannot be enforced: {first_line}",
        param=param,
        code="invalid_grammar",
        suggestions=("Remove or rewrite the part that the message names.",),
    )


class GrammarMasks:
    """The masks of those rows of a batch that have a grammar."""

    def __init__(self, vocabulary: int, matchers: Sequence[GrammarMatcher | None]) -> None:
        self._matchers = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
        self._vocabulary = vocabulary
        self._bits = allocate_token_bitmask(len(self._matchers), vocabulary)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits [rows, vocabulary] with minus infinity wherever a grammar forbids the token."""
        if not self._matchers:
            return logits
        for index, (_, matcher) in enumerate(self._matchers):
            matcher.fill(self._bits, index)
        words = mx.array(self._bits.view(np.uint32))
        allowed = (words[..., None] >> mx.arange(32, dtype=mx.uint32)) & 1
        allowed = allowed.reshape(len(self._matchers), -1)[:, : self._vocabulary].astype(mx.bool_)
        if len(self._matchers) == logits.shape[0]:
            return mx.where(allowed, logits, -mx.inf)
        rows = mx.array([row for row, _ in self._matchers])
        logits[rows] = mx.where(allowed, logits[rows], -mx.inf)
        return logits
