"""``POST /v1/completions``, the older endpoint: plain text in, plain text out."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer
from jackfield.api.choices import ChoicesReply
from jackfield.api.form import constraint_of
from jackfield.api.generation import engine_requests
from jackfield.api.respond import respond
from jackfield.api.token_ids import known_tokens
from jackfield.choice import Delta
from jackfield.engine.request import TokenEvent
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.middle import Middle, ending, filler
from jackfield.models.fim import FillInTheMiddle
from jackfield.models.registry import ServedModel
from jackfield.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
)
from jackfield.protocol.completions import FinishReason as Finish
from jackfield.protocol.logprobs import CompletionLogprobs


async def completions(request: Request) -> Response:
    """Go on with a text."""
    return await respond(request, CompletionRequest, _CompletionReply)


def _tokens(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        return model.tokenizer.encode(prompt, limit=model.context_length)
    return known_tokens(prompt, model, "prompt")


class _CompletionReply(ChoicesReply[CompletionRequest]):
    prefix = "cmpl"
    whole = Completion
    chunk = CompletionChunk

    def __init__(self, asked: CompletionRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        super().__init__(asked, model, exchange, host)
        self._echoes: defaultdict[int, str] = defaultdict(str)
        self._offsets: defaultdict[int, int] = defaultdict(int)

    @property
    def plain(self) -> bool:
        return self.asked.logprobs is None

    def ask(self) -> Answer:
        asked, each = self.asked, self.asked.n or 1
        fim = filler(self.model, "suffix") if asked.suffix else None
        requests = engine_requests(
            asked,
            self.model,
            [self._prompt(prompt, fim) for prompt in asked.prompts],
            self.exchange,
            name=self.id,
            param="prompt",
            top_logprobs=asked.logprobs,
            grammar=constraint_of(asked, self.model),
            prompt_logprobs=bool(asked.echo and asked.logprobs is not None),
        )
        echoes = [self._echo(prompt) for prompt in asked.prompts for _ in range(each)]
        self._echoes.update(enumerate(echoes))
        if fim:
            return Middle(self.model, ending(requests, fim), self.exchange, asked.stops, each=each)
        return Answer(self.model, requests, self.exchange, asked.stops, each=each)

    def _prompt(self, prompt: str | list[int], fim: FillInTheMiddle | None) -> list[int]:
        if fim:
            before = prompt if isinstance(prompt, str) else _tokens(prompt, self.model)
            return fim.prompt(before, self.asked.suffix or "")
        return _tokens(prompt, self.model)

    def _echo(self, prompt: str | list[int]) -> str:
        if not self.asked.echo:
            return ""
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt, special=True)

    def choice(self, index: int, parts: Sequence[Delta]) -> CompletionChoice:
        tokens = [token for part in parts for token in (*part.prompt_tokens, *part.tokens)]
        return CompletionChoice(
            index=index,
            text=self._echoes[index] + "".join(part.text for part in parts),
            logprobs=self._logprobs(index, tokens),
            finish_reason=_finish(parts[-1]) or "stop",
        )

    def pieces(self, part: Delta) -> Iterator[CompletionChunkChoice]:
        echo, self._echoes[part.index] = self._echoes[part.index], ""
        yield CompletionChunkChoice(
            index=part.index,
            text=echo + part.text,
            logprobs=self._logprobs(part.index, [*part.prompt_tokens, *part.tokens]),
            finish_reason=_finish(part),
        )

    def _logprobs(self, index: int, tokens: Sequence[TokenEvent]) -> CompletionLogprobs | None:
        if self.asked.logprobs is None:
            return None
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=offsets,
        )

    def _top(self, token: TokenEvent) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        return {self._text(other): logprob for other, logprob in token.top[: self.asked.logprobs]}

    def _text(self, token: int) -> str:
        return self.model.tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finish(part: Delta) -> Finish | None:
    return "stop" if part.finish_reason == "tool_calls" else part.finish_reason
