"""``truncation: "auto"``: a conversation that is too long loses its beginning."""

from bisect import bisect_left
from dataclasses import replace

from jackfield.api.conversation import ANSWER_ROOM
from jackfield.api.responses.conversion import Places
from jackfield.models.registry import ServedModel
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest


def fitted(asked: ChatCompletionRequest, places: Places, model: ServedModel) -> tuple[ChatCompletionRequest, Places]:
    """As much of the end of a conversation as the model has room for, and where its messages stand now.

    What it begins with, system and developer messages, stays; what a tool gave goes with the call.

    Raises:
        InvalidRequestError: the model's template refuses the conversation.
    """
    room = model.context_length - min(asked.token_limit or ANSWER_ROOM, model.context_length // 4)

    def fits(start: int) -> bool:
        return len(chat_prompt(_without(asked, head, start), model.tokenizer)) <= room

    messages = asked.messages
    head = next((i for i, one in enumerate(messages) if one.role not in ("system", "developer")), len(messages))
    starts = [head, *(i for i, one in enumerate(messages) if i > head and one.role != "tool")]
    # If the last message alone does not fit either, what becomes of it is an error elsewhere.
    start = starts[min(bisect_left(starts, True, key=fits), len(starts) - 1)]
    left = [*places.messages[:head], *places.messages[start:]]
    return _without(asked, head, start), replace(places, messages=left)


def _without(asked: ChatCompletionRequest, head: int, start: int) -> ChatCompletionRequest:
    return asked.model_copy(update={"messages": [*asked.messages[:head], *asked.messages[start:]]})
