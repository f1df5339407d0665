"""An answer by the first of several who can give it."""

from collections.abc import AsyncGenerator, Iterator, Sequence

from jackfield.answer import Answer, Progress
from jackfield.backends.plugged import PluggedAnswer
from jackfield.choice import Delta
from jackfield.engine.request import GenerationRequest
from jackfield.errors import DeadlineExceededError, JackfieldError, ShuttingDownError
from jackfield.protocol.extension import EndedBy, Extension
from jackfield.protocol.usage import Usage


class Cascade:
    """Passes on what a backend answers; when it fails before it has said anything, the engine here answers.

    Args:
        name: the backend's.
        plugged: its answer.
        own: the engine's.
    """

    def __init__(self, name: str, plugged: PluggedAnswer, own: Answer) -> None:
        self._name = name
        self._own = own
        self._current: PluggedAnswer | Answer = plugged
        self.exchange = own.exchange

    @property
    def requests(self) -> Sequence[GenerationRequest]:
        """One a choice."""
        return self._own.requests

    @property
    def each(self) -> int:
        """Choices for each prompt."""
        return self._own.each

    def admit(self) -> None:
        """Make sure that somebody takes the request.

        Raises:
            UnavailableError: nobody does.
        """
        try:
            self._current.admit()
        except JackfieldError as error:
            if self._current is self._own:
                raise
            self._fall_back(error)
            self._own.admit()

    async def __aiter__(self) -> AsyncGenerator[Delta | Progress, None]:
        """What the first one who can says.

        Raises:
            Exception: it failed in the middle, or the last one failed.
        """
        said = False
        try:
            async for part in self._current:
                said = True
                yield part
        except (DeadlineExceededError, ShuttingDownError):
            # The client's own limit, or the server's end: nobody else has time either.
            raise
        except JackfieldError as error:
            if said or self._current is self._own:
                raise
            self._fall_back(error)
        else:
            return
        self._own.admit()
        async for part in self._own:
            yield part

    def _fall_back(self, error: JackfieldError) -> None:
        self._current = self._own
        self.exchange.fell_back(self._name, "mlx", error.message)

    @property
    def ended(self) -> bool:
        """Whether all is said."""
        return self._current.ended

    def cancel(self) -> None:
        """Nobody listens any more."""
        self._current.cancel()

    def stop(self) -> None:
        """Somebody else is to answer."""
        self._current.stop()

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        return self._current.cut_off(by)

    def usage(self) -> Usage:
        """Tokens so far."""
        return self._current.usage()

    def extension(self) -> Extension:
        """How it came about."""
        return self._current.extension()
