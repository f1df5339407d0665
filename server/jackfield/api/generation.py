"""What a request's fields mean for the engine."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from jackfield.engine.grammar import Constraint
from jackfield.engine.request import GenerationRequest, PromptImage, SamplingParameters
from jackfield.errors import ContextLengthExceededError, InvalidRequestError
from jackfield.exchange import Exchange
from jackfield.hooks.data import TOP_K, Signal
from jackfield.models.registry import ServedModel
from jackfield.protocol.sampling import SamplingRequest


def engine_requests(
    body: SamplingRequest,
    model: ServedModel,
    prompts: Sequence[list[int]],
    exchange: Exchange,
    *,
    name: str,
    param: str,
    top_logprobs: int | None = None,
    prompt_logprobs: bool = False,
    grammar: Constraint | None = None,
    images: tuple[PromptImage, ...] = (),
) -> list[GenerationRequest]:
    """All choices of a request, those of the first prompt first.

    Args:
        body: what the client sent.
        model: who answers.
        prompts: token ids.
        exchange: what is known of the request.
        name: the answer's id; its choices are named after it.
        param: the field that holds the prompts.
        top_logprobs: see GenerationRequest.
        prompt_logprobs: see GenerationRequest.
        grammar: what the answer must be.
        images: those in the prompt, of which there is one then.

    Raises:
        ContextLengthExceededError: a prompt leaves no room for an answer.
    """
    if top_logprobs is not None:
        # Takes up to a second the first time, and this runs on a worker thread.
        model.tokenizer.token_bytes(0)
    common = GenerationRequest(
        id=name,
        prompt=(),
        max_tokens=0,
        sampling=sampling(body, model),
        images=images,
        adapter=model.adapter,
        stop_tokens=_stop_tokens(body, model),
        top_logprobs=_wanted(top_logprobs, exchange.hooks.signals),
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        entropy="entropy" in exchange.hooks.signals,
        prepare=partial(exchange.hooks.engine.prepare, exchange.info) if exchange.hooks.engine.wanted else None,
        priority=(body.priority or 0) + (exchange.info.identity.priority if exchange.info.identity else 0),
        deadline=exchange.deadline(body.timeout),
    )
    fitted = [_fit(common, prompt, body.token_limit, model, param) for prompt in prompts]
    each = product(fitted, range(body.n or 1))
    return [_choice(request, number, index) for number, (request, index) in enumerate(each)]


def _wanted(top_logprobs: int | None, signals: frozenset[Signal]) -> int | None:
    """How many of the most likely tokens to report, for the client and for plugins."""
    if "top_k" in signals:
        return max(top_logprobs or 0, TOP_K)
    return 0 if top_logprobs is None and signals else top_logprobs


def _fit(
    common: GenerationRequest, prompt: list[int], limit: int | None, model: ServedModel, param: str
) -> GenerationRequest:
    room = model.context_length - len(prompt)
    if room < 1:
        raise ContextLengthExceededError(context_length=model.context_length, prompt_tokens=len(prompt), param=param)
    return replace(
        common,
        prompt=tuple(prompt) or _empty_prompt(model, param),
        max_tokens=room if limit is None else min(limit, room),
    )


def _choice(request: GenerationRequest, number: int, index: int) -> GenerationRequest:
    """One of the choices, with a seed of its own: spread, so that none repeats one of the next seed's."""
    seed = request.sampling.seed ^ (index * 0x9E3779B97F4A7C15)
    return replace(request, id=f"{request.id}-{number}", sampling=replace(request.sampling, seed=seed))


def _empty_prompt(model: ServedModel, param: str) -> tuple[int, ...]:
    if not model.tokenizer.end_tokens:
        raise InvalidRequestError(f"The {param} is empty.", param=param, suggestions=("Send some text.",))
    # A model has to be given something; OpenAI's default prompt is the end-of-text token too.
    return (min(model.tokenizer.end_tokens),)


def _stop_tokens(body: SamplingRequest, model: ServedModel) -> frozenset[int]:
    """Tokens that end the answer: the model's own, and stop strings that are one special token."""
    special = (model.tokenizer.special_token(stop) for stop in body.stops)
    own: frozenset[int] = frozenset() if body.ignore_eos else model.tokenizer.end_tokens
    return own | {token for token in special if token is not None}


def sampling(body: SamplingRequest, model: ServedModel) -> SamplingParameters:
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
        seed=secrets.randbits(62) if body.seed is None else body.seed,
    )


def _choose(sent: float | None, defaults: Mapping[str, Any], name: str, otherwise: float) -> float:
    if sent is not None:
        return sent
    advised = defaults.get(name)
    return otherwise if advised is None else float(advised)
