"""``POST /v1/completions``, the older endpoint: plain text in, plain text out."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer, Delta, by_choice
from jackfield.api import body, sse
from jackfield.api.generation import engine_request, new_id, now, request_seed
from jackfield.engine.request import TokenEvent
from jackfield.errors import InvalidRequestError
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
    asked = await body.read(request, CompletionRequest)
    model = request.app.state.registry.get(asked.model)
    reply = await asyncio.to_thread(_Reply, asked, model)
    reply.answer.admit()
    if asked.stream:
        return sse.respond(reply.stream(), request.app.state.settings.heartbeat)
    completion = await body.unless_gone(request, reply.collect())
    return Response(completion.to_json(), media_type="application/json")


def _tokens(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        return model.tokenizer.encode(prompt)
    if unknown := [token for token in prompt if token >= model.vocabulary]:
        raise InvalidRequestError(
            f"The prompt has token {unknown[0]}, but this model's ids end at {model.vocabulary - 1}.",
            param="prompt",
            code="invalid_value",
            suggestions=("Tokenize with this model's own tokenizer.",),
        )
    return prompt


class _Reply:
    """The answer to one request, and how to put it into OpenAI's words."""

    def __init__(self, asked: CompletionRequest, model: ServedModel) -> None:
        self._asked = asked
        self._model = model
        self._id = new_id("cmpl")
        self._created = now()
        seed, each = request_seed(asked), range(asked.n or 1)
        prompts = [_tokens(prompt, model) for prompt in asked.prompts]
        requests = [
            engine_request(
                asked,
                model,
                prompt,
                index=index,
                seed=seed,
                token_limit=asked.token_limit,
                param="prompt",
                top_logprobs=asked.logprobs,
                prompt_logprobs=bool(asked.echo and asked.logprobs is not None),
            )
            for prompt in prompts
            for index in each
        ]
        self.answer = Answer(model, requests, asked.stops, each=len(each))
        self._echoes = [self._echo(prompt) for prompt in asked.prompts for _ in each]
        self._offsets = [0] * len(requests)

    def _echo(self, prompt: str | list[int]) -> str:
        if not self._asked.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._model.tokenizer.decode(prompt, special=True)

    async def collect(self) -> Completion:
        """The whole answer."""
        try:
            parts = [part async for part in self.answer if isinstance(part, Delta)]
        finally:
            self.answer.cancel()
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model.id,
            choices=[self._choice(index, own) for index, own in enumerate(by_choice(parts, len(self._echoes)))],
            usage=self.answer.usage(),
        )

    def _choice(self, index: int, parts: Sequence[Delta]) -> CompletionChoice:
        tokens = [token for part in parts for token in (*part.prompt_tokens, *part.tokens)]
        return CompletionChoice(
            index=index,
            text=self._echoes[index] + "".join(part.text for part in parts),
            logprobs=self._logprobs(index, tokens),
            finish_reason=_finish(parts[-1]) or "stop",
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, chunk by chunk."""
        async with aclosing(sse.deltas(self.answer)) as parts:
            async for part in parts:
                yield part if isinstance(part, bytes) else self._event(part)
        if self._wants_usage:
            chunk = CompletionChunk(id=self._id, created=self._created, model=self._model.id, choices=[])
            chunk.usage = self.answer.usage()
            yield sse.event(chunk)
        yield sse.DONE

    def _event(self, part: Delta) -> bytes:
        echo, self._echoes[part.index] = self._echoes[part.index], ""
        return self._chunk(
            CompletionChunkChoice(
                index=part.index,
                text=echo + part.text,
                logprobs=self._logprobs(part.index, [*part.prompt_tokens, *part.tokens]),
                finish_reason=_finish(part),
            )
        )

    @property
    def _wants_usage(self) -> bool:
        return bool(self._asked.stream_options and self._asked.stream_options.include_usage)

    def _chunk(self, choice: CompletionChunkChoice) -> bytes:
        chunk = CompletionChunk(id=self._id, created=self._created, model=self._model.id, choices=[choice])
        options = self._asked.stream_options
        if options and options.continuous_usage_stats:
            chunk.usage = self.answer.usage()
        elif self._wants_usage:
            chunk.usage = None
        return sse.event(chunk)

    def _logprobs(self, index: int, tokens: Sequence[TokenEvent]) -> CompletionLogprobs | None:
        if self._asked.logprobs is None:
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
        return {self._text(other): logprob for other, logprob in token.top}

    def _text(self, token: int) -> str:
        return self._model.tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finish(part: Delta) -> Finish | None:
    return "stop" if part.finish_reason == "tool_calls" else part.finish_reason
