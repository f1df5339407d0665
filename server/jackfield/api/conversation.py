"""A conversation to go on with: its prompt, and what the engine has to do. All dialects come together here."""

import asyncio
from collections import Counter
from typing import Any

from jackfield.answer import Answer
from jackfield.api.form import ChatForm
from jackfield.api.generation import engine_requests
from jackfield.backends.remote import RemoteModel
from jackfield.compression import compress
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.prompt import Prompt, chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest

ANSWER_ROOM = 1024
"""Tokens to keep free for an answer when its length is not limited, but no more than a quarter of the context."""


class Conversation:
    """What a request of any dialect asks for, in the words of ``/v1/chat/completions``.

    Args:
        asked: the request.
        model: who answers.
        exchange: where it is told how the answer goes.
        host: the server.
    """

    def __init__(self, asked: ChatCompletionRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        self.asked = asked
        self._model = model
        self._exchange = exchange
        self._host = host
        self._prompt = Prompt([])

    async def prepare(self) -> None:
        """Make the prompt, from less of the conversation if there is too much and a plugin can make it shorter.

        Raises:
            InvalidRequestError: the model's template refuses the conversation, or an image cannot be read.
        """
        if isinstance(self._model, RemoteModel):
            # Whoever answers has the template.
            return
        tokenizer, images = self._model.tokenizer, self._model.images
        pictures = None if images is None else await images.read(self.asked)
        shortens = self._exchange.hooks.has("compress_context")
        limit = None if shortens else self._model.context_length
        self._prompt = await asyncio.to_thread(chat_prompt, self.asked, tokenizer, pictures, limit)
        count = len(self._prompt.tokens)
        if shortens and count > self._budget:
            found = await compress(self.asked, count, tokenizer, self._budget, self._exchange, pictures=pictures)
            if found is not None:
                self.asked, self._prompt = found

    @property
    def _budget(self) -> int:
        """Tokens of a conversation that leave room for an answer."""
        context = self._model.context_length
        fits = context - min(self.asked.token_limit or ANSWER_ROOM, context // 4)
        return min(fits, self._host.settings.context_budget or fits)

    def ask(self, name: str, param: str = "messages") -> Answer:
        """What the engine has to do; on a worker thread.

        Args:
            name: the answer's id.
            param: the field that holds the conversation.

        Raises:
            InvalidRequestError: it cannot be done.
        """
        asked = self.asked
        own, plugged = self._host.call_format(self._model.tokenizer)
        form = ChatForm(asked, self._model, own, plugged, self._prompt.tokens).work_out()
        requests = engine_requests(
            asked,
            self._model,
            [self._prompt.tokens],
            self._exchange,
            images=self._prompt.images,
            name=name,
            param=param,
            top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            grammar=form.constraint,
        )
        return Answer(
            self._model,
            requests,
            self._exchange,
            asked.stops,
            [form.separator() for _ in requests],
            visible=form.visible,
            one_call=asked.parallel_tool_calls is False,
            each=len(requests),
        )

    def facts(self) -> dict[str, Any]:
        """What there is to log of the conversation, in numbers and names."""
        roles = Counter(message.role for message in self.asked.messages)
        return {
            "messages": len(self.asked.messages),
            "roles": dict(roles),
            "tools": len(self.asked.tools or ()),
            "images": len(self._prompt.images),
        }
