"""What the model reads: text to tokens and back, conversations to prompts, and how the tokenizer is set up."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from jackfield.api import body
from jackfield.api.routing import Ask, ask_route
from jackfield.api.token_ids import known_tokens
from jackfield.backends.remote import UpstreamModel
from jackfield.backends.route import counting
from jackfield.exchange import Exchange
from jackfield.models.registry import ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_text
from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.tokens import (
    ApplyTemplateRequest,
    Detokenized,
    DetokenizeRequest,
    Messages,
    Piece,
    TemplateApplied,
    TemplateOptions,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)

Asked = TypeVar("Asked", TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest)


async def tokenize(request: Request) -> Response:
    """The tokens of a text or of a conversation."""
    return await _respond(request, TokenizeRequest, _tokenized, _their_tokens)


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    return await _respond(request, DetokenizeRequest, _detokenized, _their_text)


async def apply_template(request: Request) -> Response:
    """The prompt that a conversation becomes."""
    return await _respond(request, ApplyTemplateRequest, _applied, _their_prompt)


async def tokenizer_info(request: Request) -> Response:
    """How the model's tokenizer is set up."""
    name = request.query_params.get("model")

    async def ask(model: ServedModel) -> TokenizerInfo:
        if isinstance(model, UpstreamModel):
            query = urlencode({"model": model.question.model})
            return await model.question.ask(f"/tokenizer_info?{query}", None, partial(_their_info, model.id))
        told = {"model": model.id, "model_max_length": model.context_length, **model.tokenizer.settings()}
        return TokenizerInfo.model_validate(told)

    return await looked_up(request, name, ask)


async def looked_up(request: Request, name: str | None, ask: Ask[AnswerModel]) -> Response:
    """What somebody on a model's route tells for whom nothing has to be generated, while the client waits for it.

    Args:
        request: HTTP's.
        name: the model's.
        ask: for the answer.

    Raises:
        JackfieldError: nobody tells.
        ClientDisconnect: the client has hung up.
    """
    async with request.app.state.drain.interrupting():
        asking = ask_route(request, name, Exchange.unlogged(request), counting, ask)
        answer = await body.unless_gone(request, asking)
    return Response(answer.to_json(), media_type="application/json")


async def _respond(
    request: Request,
    asks: type[Asked],
    answer: Callable[[Asked, ServedModel], AnswerModel],
    theirs: Callable[[JsonObject], AnswerModel],
) -> Response:
    """Answer here, or read what another server answers at the same path."""
    _, asked = await body.parsed(await body.whole(request), asks)

    async def ask(model: ServedModel) -> AnswerModel:
        if isinstance(model, UpstreamModel):
            path = request.scope["path"].removeprefix("/v1")
            return await model.question.ask(path, asked.model_dump(mode="json", exclude_unset=True), theirs)
        # Long texts and templates take their time.
        return await asyncio.to_thread(answer, asked, model)

    return await looked_up(request, asked.model, ask)


def _tokenized(asked: TokenizeRequest, model: ServedModel) -> Tokens:
    tokenizer = model.tokenizer
    text = asked.text if asked.messages is None else _prompt(asked, asked.messages, model)
    tokens = tokenizer.encode(text, special=asked.special, parse=asked.parse_special is not False)
    return Tokens(
        count=len(tokens),
        max_model_len=model.context_length,
        tokens=[_piece(token, tokenizer) for token in tokens] if asked.with_pieces else tokens,
        token_strs=tokenizer.written(tokens) if asked.return_token_strs else None,
    )


def _piece(token: int, tokenizer: Tokenizer) -> Piece:
    data = tokenizer.token_bytes(token)
    try:
        return Piece(id=token, piece=data.decode())
    except UnicodeDecodeError:
        return Piece(id=token, piece=list(data))


def _detokenized(asked: DetokenizeRequest, model: ServedModel) -> Detokenized:
    text = model.tokenizer.decode(known_tokens(asked.tokens, model, "tokens"), special=True)
    return Detokenized(prompt=text, content=text)


def _their_tokens(told: JsonObject) -> Tokens:
    # llama.cpp tells nothing but the tokens.
    return Tokens.model_validate({"count": len(told["tokens"]), "max_model_len": None, **told})


def _their_info(model: str, told: JsonObject) -> TokenizerInfo:
    # vLLM tells much more.
    known = {name: told.get(name) for name in TokenizerInfo.model_fields}
    return TokenizerInfo.model_validate(known | {"model": model})


def _their_text(told: JsonObject) -> Detokenized:
    # By vLLM's name or by llama.cpp's.
    text = told["prompt"] if "prompt" in told else told["content"]
    return Detokenized(prompt=text, content=text)


def _their_prompt(told: JsonObject) -> TemplateApplied:
    return TemplateApplied(prompt=told["prompt"])


def _applied(asked: ApplyTemplateRequest, model: ServedModel) -> TemplateApplied:
    # An image is what the template writes for it; how many tokens it has, only its pixels tell.
    return TemplateApplied(prompt=_prompt(asked, asked.messages, model, images=model.images is not None))


def _prompt(options: TemplateOptions, messages: Messages, model: ServedModel, *, images: bool = False) -> str:
    conversation = ChatCompletionRequest(
        model=model.id,
        messages=messages,
        tools=options.tools,
        reasoning_effort=options.reasoning_effort,
        chat_template_kwargs=options.chat_template_kwargs,
    )
    return chat_text(
        conversation,
        model.tokenizer,
        begins_answer=options.begins_answer,
        continues=bool(options.continue_final_message),
        images=images,
    )
