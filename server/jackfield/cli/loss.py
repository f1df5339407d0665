"""What the leader of a group does when the group falls apart."""

import asyncio
import contextlib

from jackfield.group.keeper import end_process
from jackfield.models.registry import Registry

LINGER_SECONDS = 3.0
"""A leader without followers answers for so long that it is not ready, so that whoever asks learns why."""


class Loss:
    """What a leader does when its group has fallen apart: requests end, and so does the process, to be started anew.

    Made on the event loop; it may be told on any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        self._reason = ""
        self.status = 0
        """With which the process is to end, once it has happened."""
        self._registry: Registry | None = None

    def __call__(self, reason: str, status: int) -> None:
        """The group has fallen apart."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, reason, status)

    def _tell(self, reason: str, status: int) -> None:
        self._reason, self.status = reason, status
        if self._registry is None:
            # Nobody is served yet, and the engine's thread may wait for the others for ever.
            end_process(status)
        self._told.set()

    def serving(self, registry: Registry) -> None:
        """From now on there are requests."""
        self._registry = registry

    async def ended(self) -> None:
        """Returns when the group has fallen apart, and everybody who asked has had time to learn of it."""
        await self._told.wait()
        for model in self._registry or ():
            model.engine.give_up(self._reason)
        await asyncio.sleep(LINGER_SECONDS)
