"""What a request's fields mean for the engine."""

import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any

from jackfield.engine.grammar import Grammar
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.errors import ContextLengthExceededError, InvalidRequestError
from jackfield.models.registry import ServedModel
from jackfield.protocol.sampling import SamplingRequest


def new_id(prefix: str) -> str:
    """An id for an answer, such as ``chatcmpl-…``."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def engine_request(
    body: SamplingRequest,
    model: ServedModel,
    prompt: list[int],
    *,
    index: int,
    seed: int,
    token_limit: int | None,
    param: str,
    top_logprobs: int | None = None,
    prompt_logprobs: bool = False,
    grammar: Grammar | None = None,
) -> GenerationRequest:
    """One choice of a request.

    Args:
        body: what the client sent.
        model: who answers.
        prompt: token ids.
        index: the choice's number; each has a seed of its own.
        seed: the request's.
        token_limit: how many tokens the client wants at most; None for what the context leaves.
        param: the field that holds the prompt.
        top_logprobs: see GenerationRequest.
        prompt_logprobs: see GenerationRequest.
        grammar: what the answer must be.

    Raises:
        ContextLengthExceededError: the prompt leaves no room for an answer.
    """
    if top_logprobs is not None:
        # Takes up to a second the first time, and this runs on a worker thread.
        model.tokenizer.token_bytes(0)
    room = model.context_length - len(prompt)
    if room < 1:
        raise ContextLengthExceededError(context_length=model.context_length, prompt_tokens=len(prompt), param=param)
    return GenerationRequest(
        id=uuid.uuid4().hex,
        prompt=tuple(prompt) or _empty_prompt(model, param),
        max_tokens=room if token_limit is None else min(token_limit, room),
        # Spread, so that no choice repeats one of the next seed's.
        sampling=sampling(body, model, seed ^ (index * 0x9E3779B97F4A7C15)),
        stop_tokens=_stop_tokens(body, model),
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def _empty_prompt(model: ServedModel, param: str) -> tuple[int, ...]:
    if not model.tokenizer.end_tokens:
        raise InvalidRequestError(f"The {param} is empty.", param=param, suggestions=("Send some text.",))
    # A model has to be given something; OpenAI's default prompt is the end-of-text token too.
    return (min(model.tokenizer.end_tokens),)


def request_seed(body: SamplingRequest) -> int:
    """The seed the client chose, or a new one."""
    return secrets.randbits(62) if body.seed is None else body.seed


def _stop_tokens(body: SamplingRequest, model: ServedModel) -> frozenset[int]:
    """Tokens that end the answer: the model's own, and stop strings that are one special token."""
    special = (model.tokenizer.special_token(stop) for stop in body.stops)
    own: frozenset[int] = frozenset() if body.ignore_eos else model.tokenizer.end_tokens
    return own | {token for token in special if token is not None}


def sampling(body: SamplingRequest, model: ServedModel, seed: int) -> SamplingParameters:
    """Sampling parameters: the client's, else what the model's authors advise, else none.

    Raises:
        InvalidRequestError: ``logit_bias`` names a token that the model does not have.
    """
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    if unknown := [token for token in bias if token >= model.vocabulary]:
        raise InvalidRequestError(
            f"logit_bias names token {unknown[0]}, but this model's ids end at {model.vocabulary - 1}.",
            param="logit_bias",
            code="invalid_value",
            suggestions=("Take ids of this model's own tokenizer.",),
        )
    return SamplingParameters(
        temperature=_choose(body.temperature, model.defaults, "temperature", 1.0),
        top_k=max(0, int(_choose(body.top_k, model.defaults, "top_k", 0))),
        top_p=_choose(body.top_p, model.defaults, "top_p", 1.0),
        min_p=_choose(body.min_p, model.defaults, "min_p", 0.0),
        repetition_penalty=_choose(body.repetition_penalty, model.defaults, "repetition_penalty", 1.0),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=bias,
        seed=seed,
    )


def _choose(sent: float | None, defaults: Mapping[str, Any], name: str, otherwise: float) -> float:
    if sent is not None:
        return sent
    advised = defaults.get(name)
    return otherwise if advised is None else float(advised)
