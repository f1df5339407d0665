"""``truncation: "auto"``: a conversation that is too long loses its beginning."""

import asyncio
from bisect import bisect_left
from dataclasses import replace

from jackfield.api.conversation import ANSWER_ROOM
from jackfield.api.responses.conversion import Places
from jackfield.models.registry import ServedModel
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.vision.pictures import Pictures


async def fitted(
    asked: ChatCompletionRequest, places: Places, model: ServedModel
) -> tuple[ChatCompletionRequest, Places]:
    """As much of the end of a conversation as the model has room for, and where its messages stand now.

    What it begins with, system and developer messages, stays; what a tool gave goes with the call.

    Raises:
        InvalidRequestError: the model's template refuses the conversation.
    """
    pictures = None if model.images is None else await model.images.read(asked)
    start = await asyncio.to_thread(_start, asked, model, pictures)
    left = [*places.messages[: _head(asked)], *places.messages[start:]]
    return _without(asked, start), replace(places, messages=left)


def _start(asked: ChatCompletionRequest, model: ServedModel, pictures: Pictures | None) -> int:
    """The first message that stays, of those that may go."""
    room = model.context_length - min(asked.token_limit or ANSWER_ROOM, model.context_length // 4)

    def fits(start: int) -> bool:
        return len(chat_prompt(_without(asked, start), model.tokenizer, pictures, room).tokens) <= room

    head = _head(asked)
    starts = [head, *(i for i, one in enumerate(asked.messages) if i > head and one.role != "tool")]
    # If the last message alone does not fit either, what becomes of it is an error elsewhere.
    return starts[min(bisect_left(starts, True, key=fits), len(starts) - 1)]


def _head(asked: ChatCompletionRequest) -> int:
    """How many messages stay in any case."""
    messages = asked.messages
    return next((i for i, one in enumerate(messages) if one.role not in ("system", "developer")), len(messages))


def _without(asked: ChatCompletionRequest, start: int) -> ChatCompletionRequest:
    left = [*asked.messages[: _head(asked)], *asked.messages[start:]]
    return asked.model_copy(update={"messages": left})
