"""A model that is elsewhere, as one that is served: nothing can be done but to ask whoever has it."""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from jackfield.backends.chunks import SpokenTokens
from jackfield.backends.plugged import PluggedAnswer, PluggedTask
from jackfield.backends.question import Question
from jackfield.backends.route import CHARACTERS, estimated_tokens
from jackfield.backends.upstream import Upstream
from jackfield.backends.upstream_answer import UpstreamAnswer, stand_ins
from jackfield.drain import Drain
from jackfield.exchange import Exchange
from jackfield.models.registry import ServedModel
from jackfield.protocol.base import JsonObject

if TYPE_CHECKING:
    from jackfield.engine.thread import Engine

ANY_TOKEN = 2**63
"""Ids of tokens are checked by whoever knows them."""


class RemoteModel(ServedModel):
    """A model without weights, tokenizer and engine."""

    def __init__(self, name: str, tokens: SpokenTokens) -> None:
        lacking: dict[str, Any] = {"context_length": 0, "vocabulary": ANY_TOKEN, "defaults": {}}
        # Nobody asks for an engine: see `jackfield.api.reply.Reply.prepare`.
        super().__init__(name, tokens.as_tokenizer(), cast("Engine", None), **lacking)

    @abstractmethod
    def answer(self, document: JsonObject, exchange: Exchange, *, plain: bool) -> UpstreamAnswer | PluggedAnswer:
        """The answer to a request in the words of ``/v1/chat/completions`` or ``/v1/completions``.

        ``plain`` says that an answer of text alone will do.
        """


class UpstreamModel(RemoteModel):
    """One that another server has, for one request.

    Args:
        name: as it is called here.
        upstream: who has it.
        called: as it is called there.
        headers: that go along.
        deadline: when the answer has to end, on ``time.monotonic``'s clock.
        drain: ends the answer when the server's time is over.
    """

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        called: str,
        *,
        headers: Mapping[str, str],
        deadline: float | None,
        drain: Drain,
    ) -> None:
        tokens = SpokenTokens()
        super().__init__(name, tokens)
        self.question = Question(upstream, called, tokens, headers, deadline)
        self.drain = drain

    def answer(self, document: JsonObject, exchange: Exchange, *, plain: bool) -> UpstreamAnswer:
        """The server's."""
        return UpstreamAnswer(self.question, document, exchange, self.drain)


class PluggedModel(RemoteModel):
    """One that a plugin's backend has, for one request.

    Args:
        name: as it is called here.
        called: as the backend is told to call it.
        deadline: see `UpstreamModel`.
        begin: has the backend do a task.
    """

    def __init__(
        self,
        name: str,
        called: str,
        *,
        deadline: float | None,
        begin: Callable[[PluggedTask, Exchange], PluggedAnswer],
    ) -> None:
        super().__init__(name, SpokenTokens())
        self._called = called
        self._deadline = deadline
        self._begin = begin

    def answer(self, document: JsonObject, exchange: Exchange, *, plain: bool) -> PluggedAnswer:
        """The backend's answer; nobody knows its tokens, so that a few bytes count as one."""
        requests = stand_ins(document, document.get("n") or 1)
        task = PluggedTask(
            document | {"model": self._called},
            requests,
            prompt_tokens=estimated_tokens(json.dumps(document).encode()),
            count=lambda text: -(-len(text.encode()) // CHARACTERS),
            plain=plain and len(requests) == 1,
            deadline=self._deadline,
        )
        return self._begin(task, exchange)
