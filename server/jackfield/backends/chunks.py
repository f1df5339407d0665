"""From the chunks that another server streams to an answer's deltas."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jackfield.choice import AnswerFinish, Delta
from jackfield.engine.request import TokenEvent
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.base import JsonObject
from jackfield.protocol.usage import Usage
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece, Thought, new_call_id

_FINISHES: dict[str, AnswerFinish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    # It was cut, whatever the reason.
    "content_filter": "length",
    "max_tokens": "length",
    "model_length": "length",
    "insufficient_system_resource": "length",
}
"""Other words mean that the model has stopped by itself: ``eos_token``, ``end_turn``."""

_BREAKS = ("abort", "error")
"""What vLLM and others say in their place when they cannot go on."""


class SpokenTokens:
    """Tokens of a model whose tokenizer is elsewhere: what has been said of them, under numbers of our own."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._bytes: list[bytes] = []

    def number(self, data: bytes) -> int:
        """The number of a token that is written so."""
        if data not in self._numbers:
            self._numbers[data] = len(self._bytes)
            self._bytes.append(data)
        return self._numbers[data]

    def token_bytes(self, token: int) -> bytes:
        """How it is written."""
        return self._bytes[token]

    def as_tokenizer(self) -> Tokenizer:
        """In the place of a model's own: nothing but `token_bytes` is asked of it there."""
        return cast(Tokenizer, self)


@dataclass
class _Call:
    index: int
    id: str
    has_arguments: bool = False


@dataclass
class _Choice:
    begun: bool = False
    """Something was heard of it."""
    finish: AnswerFinish | None = None
    call: _Call | None = None
    """The call that is open."""
    calls: set[int] = field(default_factory=set)
    half: str = ""
    """Of a character that some servers send in two halves, the first one."""


class Chunks:
    """Reads chunks.

    Args:
        choices: how many there are to be.
        tokens: where tokens get their numbers.
        nonsense: makes an error of what is wrong.
        each: choices for each prompt.
    """

    def __init__(
        self, choices: int, tokens: SpokenTokens, nonsense: Callable[[str], Exception], *, each: int = 1
    ) -> None:
        self._each = each
        self._used: list[Usage] = []
        self._choices = [_Choice() for _ in range(choices)]
        self._tokens = tokens
        self._nonsense = nonsense
        self.usage = Usage.of(prompt=0, completion=0)
        self.truncated = False
        """Some of the prompt was left out."""

    @property
    def ended(self) -> bool:
        """Whether all choices have."""
        return all(choice.finish for choice in self._choices)

    @property
    def too_few(self) -> bool:
        """Whether some have ended, and of the others nothing was heard."""
        begun = [choice for choice in self._choices if choice.begun]
        return len(begun) < len(self._choices) and bool(begun) and all(choice.finish for choice in begun)

    @property
    def finishes(self) -> list[AnswerFinish]:
        """Why they ended; as cut off where they have not."""
        return [choice.finish or "length" for choice in self._choices]

    def take(self, chunk: JsonObject) -> list[Delta]:
        """What a chunk adds.

        Raises:
            Exception: `nonsense`'s, when it is not what such servers send.
        """
        try:
            if isinstance(used := chunk.get("usage"), dict):
                self._count(_usage(used), interim=self._is_interim(chunk))
            return [delta for one in self._parts(chunk) if (delta := self._delta(one))]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            raise self._nonsense("a chunk of its answer is not as OpenAI's are") from None

    def _is_interim(self, chunk: JsonObject) -> bool:
        """Whether a choice of it goes on."""
        return any(not one.get("finish_reason") for one in self._parts(chunk))

    def _count(self, used: Usage, *, interim: bool) -> None:
        """Most servers count once, at the end; llama.cpp counts for each choice, and the same prompt each time."""
        self.usage = used
        if not interim:
            self._used.append(used)
        if len(self._used) == len(self._choices):
            self.usage = _sum(self._used, self._each)

    def _parts(self, chunk: JsonObject) -> Sequence[dict[str, Any]]:
        return chunk.get("choices") or ()

    def cut_off(self) -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        for index, choice in enumerate(self._choices):
            if choice.finish is None:
                choice.finish = "length"
                yield Delta(index, finish_reason="length")

    def _delta(self, one: dict[str, Any]) -> Delta:
        index = int(one.get("index", 0))
        if index < 0:
            raise IndexError(index)
        choice = self._choices[index]
        if choice.finish:
            # Some say their last word twice.
            return Delta(index)
        choice.begun = True
        pieces = list(self._pieces(choice, one.get("delta") or {"content": one.get("text")}))
        if finish := one.get("finish_reason"):
            choice.finish = self._finish(choice, finish)
            # A call that was cut is none.
            pieces += self._end_of_call(choice) if choice.finish != "length" else ()
        stop = one.get("stop_reason")
        return Delta(
            index,
            tuple(pieces),
            tuple(self._logprobs(one.get("logprobs") or {})),
            finish_reason=choice.finish,
            stop_string=stop if isinstance(stop, str) else None,
        )

    def _finish(self, choice: _Choice, reason: str) -> AnswerFinish:
        if reason in _BREAKS:
            raise self._nonsense(f"it has broken off its answer ({reason})")
        # A tool that had to be called ends an answer with `stop` at OpenAI and in vLLM, and not here.
        return "tool_calls" if choice.calls and reason == "stop" else _FINISHES.get(reason, "stop")

    def _pieces(self, choice: _Choice, delta: dict[str, Any]) -> Iterator[Piece]:
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Thought(_joined(choice, thought))
        if text := delta.get("content") or delta.get("refusal"):
            yield _joined(choice, text)
        for call in delta.get("tool_calls") or ():
            yield from self._call(choice, call)

    def _call(self, choice: _Choice, call: dict[str, Any]) -> Iterator[Piece]:
        function = call.get("function") or {}
        if choice.call is None or _is_another(call, choice.call):
            yield from self._end_of_call(choice)
            choice.call = self._next_call(choice, call)
            yield CallStart(_string(function["name"]), id=choice.call.id)
        if arguments := function.get("arguments"):
            choice.call.has_arguments = True
            yield CallArguments(_joined(choice, arguments))

    def _next_call(self, choice: _Choice, call: dict[str, Any]) -> _Call:
        index = call.get("index")
        index = max(choice.calls, default=-1) + 1 if index is None else int(index)
        if index in choice.calls and not (choice.call and index == choice.call.index):
            raise ValueError("calls are mixed")
        choice.calls.add(index)
        return _Call(index, _string(call.get("id") or new_call_id()))

    def _end_of_call(self, choice: _Choice) -> Iterator[Piece]:
        if choice.call is not None:
            # Clients read them as JSON.
            yield from () if choice.call.has_arguments else (CallArguments("{}"),)
            yield CallEnd()

    def _logprobs(self, told: dict[str, Any]) -> Iterator[TokenEvent]:
        for one in told.get("content") or ():
            top = tuple((self._number(other), float(other["logprob"])) for other in one.get("top_logprobs") or ())
            yield TokenEvent(self._number(one), float(one["logprob"]), top)
        # The older endpoint's.
        written = told.get("tokens") or ()
        tops = told.get("top_logprobs") or [None] * len(written)
        for token, logprob, others in zip(written, told.get("token_logprobs") or (), tops, strict=True):
            top = tuple((self._tokens.number(text.encode()), float(p)) for text, p in (others or {}).items())
            yield TokenEvent(self._tokens.number(token.encode()), None if logprob is None else float(logprob), top)

    def _number(self, one: dict[str, Any]) -> int:
        data = one.get("bytes")
        return self._tokens.number(bytes(data) if data is not None else one["token"].encode())


def _is_another(call: dict[str, Any], before: _Call) -> bool:
    """Whether it is not more of the one before: some servers leave the index out, or give each call the same."""
    index, name = call.get("index"), (call.get("function") or {}).get("name")
    if index is not None and index != before.index:
        return True
    return bool(name and (call["id"] != before.id if call.get("id") else index is None))


def _joined(choice: _Choice, value: object) -> str:
    """More of a text. Who cuts it by units of UTF-16 sends halves of characters, which are joined here."""
    text = choice.half + _string(value)
    choice.half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    text = text.removesuffix(choice.half)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _usage(told: dict[str, Any]) -> Usage:
    return Usage.of(
        prompt=int(told.get("prompt_tokens") or 0),
        completion=int(told.get("completion_tokens") or 0),
        cached=int((told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        reasoning=int((told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0),
    )


def _sum(used: Sequence[Usage], each: int) -> Usage:
    return Usage.of(
        prompt=sum(one.prompt_tokens for one in used) // each,
        completion=sum(one.completion_tokens for one in used),
        cached=sum(one.prompt_tokens_details.cached_tokens for one in used) // each,
        reasoning=sum(one.completion_tokens_details.reasoning_tokens for one in used),
    )
