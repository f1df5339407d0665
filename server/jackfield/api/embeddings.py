"""``POST /v1/embeddings``."""

import asyncio
import base64
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jackfield.api import body
from jackfield.api.routing import ask_route
from jackfield.api.token_ids import known_tokens
from jackfield.backends.remote import UpstreamModel
from jackfield.backends.route import Wants, estimated_tokens
from jackfield.errors import ContextLengthExceededError, InvalidRequestError
from jackfield.exchange import Exchange
from jackfield.models.registry import ServedModel
from jackfield.protocol.base import JsonObject
from jackfield.protocol.embeddings import Embedding, EmbeddingList, EmbeddingsRequest, EmbeddingUsage
from jackfield.protocol.extension import Extension
from jackfield.settings.upstreams import OWN
from jackfield.vectors import Vectors


async def embeddings(request: Request) -> Response:
    """The vectors of texts."""
    exchange = Exchange.of(request)
    try:
        async with request.app.state.drain.interrupting():
            whole = await body.whole(request)
            answer = await body.unless_gone(request, _answer(request, whole, exchange))
    except ClientDisconnect:
        exchange.cancelled(0)
        raise
    except Exception as error:
        exchange.failed(error)
        raise
    return Response(answer, media_type="application/json")


@dataclass(frozen=True)
class _Made:
    """Vectors, [texts, width], and how many tokens the texts have."""

    vectors: NDArray[np.float32]
    tokens: int
    model: str


async def _answer(request: Request, whole: bytes, exchange: Exchange) -> bytes:
    asked = await body.read(whole, EmbeddingsRequest, exchange)

    async def ask(model: ServedModel) -> _Made:
        if isinstance(model, UpstreamModel):
            return await _elsewhere(asked, model, exchange)
        return await _here(asked, model, exchange)

    async def wants() -> Wants:
        return Wants(estimated_tokens(whole), deadline=exchange.deadline(asked.timeout), answer=False)

    made = await ask_route(request, asked.model, exchange, wants, ask)
    # Many numbers take their time.
    return await asyncio.to_thread(_encoded, asked, made, _extension(exchange) if asked.wants_extension else None)


async def _here(asked: EmbeddingsRequest, model: ServedModel, exchange: Exchange) -> _Made:
    # So do many texts.
    vectors = await asyncio.to_thread(_prepare, asked, model, exchange)
    facts = {"prompt_tokens": vectors.tokens, "inputs": len(vectors.texts)}
    exchange.received(**facts, max_tokens=0, choices=0, context_length=model.context_length)
    if not exchange.backend:
        exchange.answered_by(OWN, "embeddings are made here")
    vectors.admit()
    exchange.spends(vectors.tokens)
    before = model.engine.statistics.device_bytes
    try:
        found = await vectors.collect()
    finally:
        vectors.cancel()
    exchange.embedded(**facts, memory_before=before, memory_after=model.engine.statistics.device_bytes)
    return _Made(found, vectors.tokens, model.id)


async def _elsewhere(asked: EmbeddingsRequest, model: UpstreamModel, exchange: Exchange) -> _Made:
    inputs = len(asked.inputs)
    exchange.received(prompt_tokens=None, inputs=inputs, max_tokens=0, choices=0, context_length=None)
    document = asked.model_dump(mode="json", exclude_unset=True)
    made = await model.question.ask("/embeddings", document, partial(_read, inputs=inputs, model=model.id))
    exchange.spends(made.tokens)
    exchange.embedded(prompt_tokens=made.tokens, inputs=inputs, memory_before=0, memory_after=0)
    return made


def _read(told: JsonObject, *, inputs: int, model: str) -> _Made:
    """Another server's answer: vectors in either of their forms, which need not be in the order of the texts.

    Raises:
        ValueError: it has not one for each text.
    """
    found = {int(one["index"]): _numbers(one["embedding"]) for one in told["data"]}
    vectors = np.stack([found[index] for index in range(inputs)])
    if vectors.ndim != 2 or len(found) != inputs or not np.isfinite(vectors).all():
        raise ValueError(vectors.shape)
    return _Made(vectors, int((told.get("usage") or {}).get("prompt_tokens") or 0), model)


def _numbers(embedding: str | list[float]) -> NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.asarray(embedding, np.float32)


def _prepare(asked: EmbeddingsRequest, model: ServedModel, exchange: Exchange) -> Vectors:
    """What the engine has to do.

    Raises:
        InvalidRequestError: it cannot be done.
    """
    model.embedding.check()
    model.embedding.check_size(asked.dimensions)
    return Vectors(
        model,
        f"embd-{uuid.uuid4().hex}",
        [_tokens(text, model) for text in asked.inputs],
        priority=(asked.priority or 0) + (exchange.info.identity.priority if exchange.info.identity else 0),
        deadline=exchange.deadline(asked.timeout),
    )


def _tokens(text: str | list[int], model: ServedModel) -> tuple[int, ...]:
    if isinstance(text, str):
        tokens = model.tokenizer.encode(text, limit=model.context_length)
        if model.embedding.end is not None and tokens[-1:] != [model.embedding.end]:
            tokens.append(model.embedding.end)
    else:
        tokens = known_tokens(text, model, "input")
    if not tokens:
        raise InvalidRequestError(
            "The input has a text without tokens.",
            param="input",
            code="invalid_value",
            suggestions=("Leave it out: what is empty has no vector.",),
        )
    if len(tokens) > model.context_length:
        raise ContextLengthExceededError(context_length=model.context_length, prompt_tokens=len(tokens), param="input")
    return tuple(tokens)


def _extension(exchange: Exchange) -> Extension:
    attempts = exchange.attempts or None
    return Extension(request_id=exchange.info.id, backend=exchange.backend, choices=[], attempts=attempts)


def _encoded(asked: EmbeddingsRequest, made: _Made, extension: Extension | None) -> bytes:
    vectors = made.vectors
    if asked.dimensions is not None and asked.dimensions < vectors.shape[1]:
        vectors = vectors[:, : asked.dimensions]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    written: Any = _base64 if asked.encoding_format == "base64" else np.ndarray.tolist
    # One by one, so that the event loop gets its turn: two million floats take a second.
    data = (Embedding(index=index, embedding=written(vector)).to_json() for index, vector in enumerate(vectors))
    usage = EmbeddingUsage(prompt_tokens=made.tokens, total_tokens=made.tokens)
    frame = EmbeddingList(data=[], model=made.model, usage=usage, jackfield=extension).to_json()
    return frame.replace(b'"data":[]', b'"data":[%b]' % b",".join(data), 1)


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
