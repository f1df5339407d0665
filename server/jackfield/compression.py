"""Conversations that are too long, on their way to plugins that make them shorter."""

import asyncio
from collections.abc import Sequence
from typing import Any

from jackfield.exchange import Exchange
from jackfield.hooks.data import ChatMessage, Compressed, JsonObject
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import Prompt, chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.extension import CompressionReport
from jackfield.protocol.parsing import validate
from jackfield.vision.pictures import Pictures


class PromptCounter:
    """The served model's tokenizer, which counts whole prompts as this request would have them.

    Args:
        document: the request, as the client might have sent it.
        tokenizer: the model's.
        pictures: the request's images.
    """

    def __init__(self, document: JsonObject, tokenizer: Tokenizer, pictures: Pictures | None = None) -> None:
        self._document = document
        self._tokenizer = tokenizer
        self._pictures = pictures

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without what the model expects around it."""
        return self._tokenizer.encode(text, special=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""
        return self._tokenizer.decode(tokens, special=True)

    def count(self, messages: Sequence[ChatMessage], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the prompt that the chat template makes of a conversation.

        Raises:
            InvalidRequestError: it is none.
        """
        document = {**self._document, "messages": list(messages), "tools": list(tools) or None}
        # Whichever tool must be called, it may not be among these.
        asked = validate(ChatCompletionRequest, {**document, "tool_choice": None})
        return len(chat_prompt(asked, self._tokenizer, self._pictures).tokens)


async def compress(
    asked: ChatCompletionRequest,
    tokens: int,
    tokenizer: Tokenizer,
    budget: int,
    exchange: Exchange,
    *,
    pictures: Pictures | None = None,
) -> tuple[ChatCompletionRequest, Prompt] | None:
    """The request with less of its conversation, and its prompt; None if no plugin can.

    Args:
        asked: what the client sent.
        tokens: how many its whole prompt has.
        tokenizer: the model's.
        budget: how many it may have.
        exchange: is told how it was done.
        pictures: the request's images; what is left of the conversation may have some of them, and no others.
    """
    document: JsonObject = asked.model_dump(mode="json", by_alias=True, exclude_unset=True)

    async def check(found: Compressed) -> tuple[ChatCompletionRequest, Prompt]:
        _report("", tokens, 0, found).to_json()
        shorter = validate(ChatCompletionRequest, document | {"messages": list(found.messages)})
        return shorter, await asyncio.to_thread(chat_prompt, shorter, tokenizer, pictures)

    found = await exchange.hooks.compress_context(
        document["messages"],
        document.get("tools") or [],
        tokenizer=PromptCounter(document, tokenizer, pictures),
        budget=budget,
        request=exchange.info,
        check=check,
    )
    if found is None:
        return None
    plugin, compressed, (shorter, prompt) = found
    exchange.compression = _report(plugin, tokens, len(prompt.tokens), compressed)
    return shorter, prompt


def _report(plugin: str, before: int, after: int, compressed: Compressed) -> CompressionReport:
    report: dict[str, Any] = dict(compressed.report)
    return CompressionReport(plugin=plugin, tokens_before=before, tokens_after=after, report=report)
