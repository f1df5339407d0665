"""``POST /infill``, llama.cpp's endpoint for editors: what stands around a gap in, what fills it out."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer, by_choice
from jackfield.api import sse
from jackfield.api.form import constraint_of
from jackfield.api.generation import engine_requests
from jackfield.api.reply import Reply
from jackfield.api.respond import respond
from jackfield.backends.plugged import PluggedAnswer
from jackfield.backends.remote import RemoteModel, UpstreamModel
from jackfield.backends.upstream_answer import UpstreamAnswer
from jackfield.choice import Delta
from jackfield.engine.infill import InfillProcessor
from jackfield.engine.request import GenerationRequest
from jackfield.errors import JackfieldError
from jackfield.middle import Middle, ending, filler
from jackfield.models.fim import File, Gap
from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.protocol.extension import EndedBy
from jackfield.protocol.infill import (
    GenerationSettings,
    InfillAnswer,
    InfillAnswers,
    InfillChunk,
    InfillRequest,
    StopType,
    Timings,
)
from jackfield.text.lines import LineMatcher

ANSWER_ROOM = 256
"""Tokens to keep free for the text at least, but no more than a quarter of the context; the same for most requests, so
that the same files are kept, and found in the prefix cache."""

UNNAMED = "tmp"
"""llama.cpp's name for a file without one."""


async def infill(request: Request) -> Response:
    """Fill a gap."""
    return await respond(request, InfillRequest, _InfillReply)


class _InfillReply(Reply[InfillRequest]):
    _truncated = False
    _elsewhere: UpstreamAnswer | None = None

    @property
    def plain(self) -> bool:
        # Nor can files be told of in OpenAI's words, or a prompt be read ahead.
        return not self.asked.input_extra and self.asked.token_limit != 0

    def document(self) -> JsonObject:
        return self.asked.as_completion(self.model.id)

    def ask_elsewhere(self, model: RemoteModel) -> UpstreamAnswer | PluggedAnswer:
        if not isinstance(model, UpstreamModel):
            return super().ask_elsewhere(model)
        # OpenAI's words do not have most of it.
        told = self.asked.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        self._elsewhere = UpstreamAnswer(model.question, told, self.exchange, self.host.drain, infill=True)
        return self._elsewhere

    def ask(self) -> Answer:
        # The client need not have named it.
        self.exchange.info = replace(self.exchange.info, model=self.model.id)
        fim = filler(self.model, "model")
        prompt, self._truncated = fim.fitting(_gap(self.asked), self.model.context_length - self._reserved)
        requests = engine_requests(
            self.asked,
            self.model,
            [prompt],
            self.exchange,
            name=f"infill-{uuid.uuid4().hex}",
            param="input_prefix",
            grammar=constraint_of(self.asked, self.model),
        )
        requests = [self._steered(request) for request in ending(requests, fim)]
        return Middle(
            self.model, requests, self.exchange, self.asked.stops, each=len(requests), matcher=self._new_matcher
        )

    @property
    def _reserved(self) -> int:
        return min(max(self.asked.token_limit or 0, ANSWER_ROOM), self.model.context_length // 4)

    def _steered(self, request: GenerationRequest) -> GenerationRequest:
        # It might leave nothing that fits a grammar.
        if "infill" not in (self.asked.samplers or ()) or request.grammar is not None:
            return request
        sampling = request.sampling
        processor = InfillProcessor(request.stop_tokens, self._piece, sampling.top_k, sampling.top_p)
        return replace(request, processors=(processor,))

    def _piece(self, token: int) -> str:
        return self.model.tokenizer.written([token])[0]

    def _new_matcher(self) -> LineMatcher:
        limit = self.asked.t_max_predict_ms
        return LineMatcher(self.asked.stops, self.asked.n_indent or 0, limit / 1000 if limit else None)

    async def collect(self) -> AnswerModel:
        parts = by_choice(await self.parts(), len(self.answer.requests))
        whole = [await self.transformed(self._whole(index, own)) for index, own in enumerate(parts)]
        answers = [answer for answer in whole if isinstance(answer, InfillAnswer)]
        return InfillAnswers(answers=answers, fields=self.asked.response_fields)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        given: list[list[Delta]] = [[] for _ in self.answer.requests]
        async with aclosing(self.deltas()) as parts:
            async for part in parts:
                match part:
                    case bytes():
                        yield part
                    case JackfieldError():
                        for event in self.refused(part, self.exchange.info.id):
                            yield event
                    case Delta():
                        given[part.index].append(part)
                        if part.text:
                            yield sse.event(self._chunk(part, given[part.index]))
        if self.answer.ended:
            for index, own in enumerate(given):
                yield sse.event(self._last(index, own))

    def _chunk(self, part: Delta, so_far: Sequence[Delta]) -> InfillChunk:
        return InfillChunk(
            index=part.index,
            content=part.text,
            tokens=_tokens([part]),
            tokens_predicted=len(_tokens(so_far)),
            tokens_evaluated=self._evaluated(part.index),
        )

    def _evaluated(self, index: int) -> int:
        """How many tokens the prompt has, which for one that was read elsewhere is known at the end."""
        return len(self.answer.requests[index].prompt) or self.answer.usage().prompt_tokens

    def _last(self, index: int, parts: Sequence[Delta]) -> InfillAnswers:
        whole = self._whole(index, parts).model_copy(update={"content": "", "tokens": []})
        return InfillAnswers(answers=[whole], fields=self.asked.response_fields)

    def _whole(self, index: int, parts: Sequence[Delta]) -> InfillAnswer:
        text, tokens = "".join(part.text for part in parts), _tokens(parts)
        extension = self.answer.extension()
        report, request, evaluated = extension.choices[index], self.answer.requests[index], self._evaluated(index)
        cached = report.cache.cached_tokens if report.cache else 0
        return InfillAnswer(
            index=index,
            content=text,
            tokens=tokens if self.asked.return_tokens else [],
            model=self.model.id,
            tokens_predicted=len(tokens),
            tokens_evaluated=evaluated,
            tokens_cached=cached,
            generation_settings=self._settings(request),
            has_new_line="\n" in text,
            truncated=self._elsewhere.truncated if self._elsewhere else self._truncated,
            stop_type=_stop_type(report.ended_by, parts[-1].stop_string),
            stopping_word=parts[-1].stop_string or "",
            timings=Timings.of(
                cached=cached,
                prompt=evaluated - cached,
                prefill=report.prefill_seconds,
                predicted=len(tokens),
                decode=report.decode_seconds,
            ),
            jackfield=extension if self.asked.wants_extension else None,
        )

    def _settings(self, request: GenerationRequest) -> GenerationSettings:
        sampling = request.sampling
        return GenerationSettings(
            n_ctx=self.model.context_length,
            n_predict=request.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            seed=sampling.seed,
            stop=list(self.asked.stops),
        )


def _gap(asked: InfillRequest) -> Gap:
    files = [File(file.filename or UNNAMED, file.text) for file in asked.input_extra or ()]
    return Gap(asked.input_prefix, asked.input_suffix, asked.prompt or "", files)


def _tokens(parts: Sequence[Delta]) -> list[int]:
    return [token.id for part in parts for token in part.tokens]


def _stop_type(ended_by: EndedBy, stop_string: str | None) -> StopType:
    if stop_string:
        return "word"
    # The rules for lines end a text with no string of their own.
    return "eos" if ended_by == "stop" else "limit"
