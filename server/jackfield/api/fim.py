"""``POST /v1/fim/completions``, Mistral's endpoint for filling in the middle."""

from collections.abc import Iterator, Sequence

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer
from jackfield.api.choices import ChoicesReply, ChunkChoice
from jackfield.api.form import constraint_of
from jackfield.api.generation import engine_requests
from jackfield.api.respond import respond
from jackfield.choice import Delta
from jackfield.middle import Middle, ending, filler
from jackfield.protocol.base import JsonObject
from jackfield.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatMessage,
)
from jackfield.protocol.fim import FimCompletionRequest
from jackfield.protocol.generation import GenerationAnswer


async def fim_completions(request: Request) -> Response:
    """Fill a gap."""
    return await respond(request, FimCompletionRequest, _FimReply)


class _FimReply(ChoicesReply[FimCompletionRequest]):
    prefix = "fim"
    whole = ChatCompletion
    chunk = ChatCompletionChunk

    def document(self) -> JsonObject:
        return self.asked.as_completion()

    def ask(self) -> Answer:
        asked, fim = self.asked, filler(self.model, "model")
        prompt = fim.prompt(asked.prompt, asked.suffix) if asked.suffix else self._tokens(asked.prompt)
        grammar = constraint_of(asked, self.model)
        requests = engine_requests(
            asked, self.model, [prompt], self.exchange, name=self.id, param="prompt", grammar=grammar
        )
        return Middle(self.model, ending(requests, fim), self.exchange, asked.stops, each=len(requests))

    def _tokens(self, prompt: str) -> list[int]:
        return self.model.tokenizer.encode(prompt, limit=self.model.context_length)

    def choice(self, index: int, parts: Sequence[Delta]) -> ChatChoice:
        text = "".join(part.text for part in parts)
        return ChatChoice(
            index=index, message=ChatMessage(content=text), finish_reason=parts[-1].finish_reason or "stop"
        )

    def opening(self) -> Iterator[ChatChunkChoice]:
        for index in range(len(self.answer.requests)):
            yield ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def pieces(self, part: Delta) -> Iterator[ChatChunkChoice]:
        if part.text or part.finish_reason:
            delta = ChatDelta(content=part.text)
            yield ChatChunkChoice(index=part.index, delta=delta, finish_reason=part.finish_reason)

    def _chunk(self, piece: ChunkChoice | None) -> GenerationAnswer:
        chunk = super()._chunk(piece)
        if self._is_last(piece):
            chunk.usage = self.answer.usage()
        return chunk
