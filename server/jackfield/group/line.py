"""A line between the leader and one follower: JSON, a message a line, over TCP.

It tells at once when the process at the other end is gone, whatever that was doing, and after a while when its machine
is.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

from jackfield.engine.lockstep import Message

SILENCE_SECONDS = 15
"""A machine that answers nothing at all for so long is gone; processes send more often than that."""

FIRST_BYTES = 4096
"""What somebody unknown may send."""


class Line:
    """One end. Any thread may send; one of them reads.

    Args:
        connection: a connected TCP socket, which the line closes.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection = connection
        self._file = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: nobody is there any more.
        """
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._connection.sendall(data)

    def __iter__(self) -> Iterator[Message]:
        """Messages as they come, until the other end is gone, or has been silent for too long."""
        self._connection.settimeout(SILENCE_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            for line in self._file:
                yield json.loads(line)

    def first(self, seconds: float) -> Message:
        """The first message of somebody unknown: a short one, and soon.

        Raises:
            ValueError: it is none.
            OSError: it does not come.
        """
        deadline = threading.Timer(seconds, self._connection.shutdown, [socket.SHUT_RDWR])
        deadline.start()
        try:
            message = json.loads(self._file.readline(FIRST_BYTES))
        finally:
            deadline.cancel()
        if not isinstance(message, dict):
            raise ValueError("no message")
        return message

    def receive(self) -> Message:
        """The next message.

        Raises:
            ConnectionError: there is none.
        """
        message = next(iter(self), None)
        if message is None:
            raise ConnectionError("the other end is gone")
        return message

    def close(self) -> None:
        """Hang up; whoever reads sees the end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
