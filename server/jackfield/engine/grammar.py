"""Constrained generation: llguidance decides which tokens may come next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from jackfield.errors import InvalidRequestError
from jackfield.json_schema import enforceable

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GrammarKind = Literal["json_schema", "regex", "lark"]


def _json_schema(source: str) -> str:
    # One way of spacing, as json.dumps does it: given the choice, small models write blanks for ever.
    spacing: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return LLMatcher.grammar_from_json_schema(enforceable(json.loads(source)), defaults=spacing)


_CONVERT = {
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "lark": LLMatcher.grammar_from_lark,
}


class Matcher(Protocol):
    """How far one answer has got in what constrains it. Used on the engine thread only."""

    @property
    def constrains(self) -> bool:
        """Whether there are tokens that must not come next."""

    @property
    def failed(self) -> bool:
        """Whether it cannot go on, so that the answer is not whole."""

    def advance(self, token: int) -> bool:
        """Take the token; True when nothing may come after it."""

    def fill(self, bits: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next into row ``row`` of ``bits``, one bit a token."""


class Constraint(Protocol):
    """What an answer must be; shared by all requests that ask for the same."""

    def start(self) -> Matcher:
        """A matcher at the beginning."""


class GrammarMatcher:
    """One answer, or a part of it, that is all in one grammar."""

    constrains = True

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def advance(self, token: int) -> bool:
        """Take the token; True when the grammar allows nothing after it."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()

    def begin(self, tokens: Sequence[int]) -> bool:
        """Take what was written already; whether the grammar allows that and more."""
        return self._matcher.try_consume_tokens(list(tokens)) == len(tokens) and not self._matcher.is_stopped()

    @property
    def failed(self) -> bool:
        """Whether the grammar grew too complex on the way (llguidance has limits), so that the answer is not whole."""
        return self._matcher.is_error()

    def fill(self, bits: NDArray[np.int32], row: int) -> None:
        """Write which tokens may come next into row ``row`` of ``bits``, one bit a token."""
        fill_next_token_bitmask(self._matcher, bits, row)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar."""

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
        self._load_once = lru_cache(maxsize=1)(self._load)
        self.compile = lru_cache(maxsize=1024)(self._compile)

    @property
    def tokenizer(self) -> LLTokenizer:
        """The tokenizer that grammars are compiled for; the first time it takes a while."""
        return self._load_once()

    def _load(self) -> LLTokenizer:
        # Takes about a second for a large vocabulary, so only once somebody needs it.
        source = json.loads(self._source)
        # Tokens that some tokenizers have beyond those that the model has logits for.
        source["added_tokens"] = [one for one in source.get("added_tokens", ()) if one["id"] < self._vocabulary]
        return LLTokenizer(json.dumps(source), n_vocab=self._vocabulary, eos_token=self._end_tokens or None)

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
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        return Grammar(matcher)


def _refusal(reason: str, param: str) -> InvalidRequestError:
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip(" ^")]
    if reason.startswith("panic:"):
        # An assertion of the compiler's, with a backtrace.
        lines = ["the compiler gives up on it. It may be too large."]
    return InvalidRequestError(
        f"The grammar in {param} cannot be enforced: {' '.join(lines[:4]) or 'unknown reason'}",
        param=param,
        code="invalid_grammar",
        suggestions=("Remove or rewrite the part that the message names.",),
    )


class GrammarMasks:
    """The masks of those rows of a batch that something constrains."""

    def __init__(self, vocabulary: int, matchers: Sequence[Matcher | None]) -> None:
        self._matchers = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
        self._vocabulary = vocabulary
        self._bits = allocate_token_bitmask(len(self._matchers), vocabulary)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits [rows, vocabulary] with minus infinity wherever a token must not come."""
        constrained = [(row, matcher) for row, matcher in self._matchers if matcher.constrains]
        if not constrained:
            return logits
        for index, (_, matcher) in enumerate(constrained):
            matcher.fill(self._bits, index)
        # Expanded on the host, which has nothing else to do while the model runs.
        bits = self._bits[: len(constrained)].view(np.uint8)
        allowed = mx.array(np.unpackbits(bits, axis=1, count=self._vocabulary, bitorder="little").view(np.bool_))
        if len(constrained) == logits.shape[0]:
            return mx.where(allowed, logits, -mx.inf)
        rows = mx.array([row for row, _ in constrained])
        logits[rows] = mx.where(allowed, logits[rows], -mx.inf)
        return logits
