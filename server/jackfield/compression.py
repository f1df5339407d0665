"""Conversations that are too long, on their way to plugins that make them shorter."""

from collections.abc import Sequence
from typing import Any

from jackfield.exchange import Exchange
from jackfield.hooks.data import ChatMessage, Compressed, JsonObject
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.extension import CompressionReport
from jackfield.protocol.parsing import validate


class PromptCounter:
    """The served model's tokenizer, which counts whole prompts as this request would have them.

    Args:
        document: the request, as the client might have sent it.
        tokenizer: the model's.
    """

    def __init__(self, document: JsonObject, tokenizer: Tokenizer) -> None:
        self._document = document
        self._tokenizer = tokenizer

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
        return len(chat_prompt(asked, self._tokenizer))


async def compress(
    asked: ChatCompletionRequest, tokenizer: Tokenizer, budget: int, exchange: Exchange
) -> tuple[ChatCompletionRequest, CompressionReport] | None:
    """The request with less of its conversation, and how that was done; None if no plugin can.

    The exchange is told; the report's counts are the caller's to fill in.
    """
    document: JsonObject = asked.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def check(found: Compressed) -> ChatCompletionRequest:
        return validate(ChatCompletionRequest, document | {"messages": list(found.messages)})

    found = await exchange.hooks.compress_context(
        document["messages"],
        document.get("tools") or [],
        tokenizer=PromptCounter(document, tokenizer),
        budget=budget,
        request=exchange.info,
        check=check,
    )
    if found is None:
        return None
    plugin, compressed, shorter = found
    report: dict[str, Any] = dict(compressed.report)
    exchange.compression = CompressionReport(plugin=plugin, tokens_before=0, tokens_after=0, report=report)
    return shorter, exchange.compression
