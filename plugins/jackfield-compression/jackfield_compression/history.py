"""Compressions that have been made, by the messages they are about: in memory only, for conversations are private."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from jackfield.hooks import ChatMessage
from jackfield_compression.compression import Compression
from jackfield_compression.sizes import digest


def chain(messages: Sequence[ChatMessage], model: str, key: bytes) -> list[bytes]:
    """For each number of messages, from 0, what stands for the beginning of the conversation that long."""
    links = [digest(model)]
    for message in messages:
        links.append(blake2b(links[-1] + digest(message), digest_size=16, key=key).digest())
    return links


class History:
    """The latest compressions. From any thread.

    Args:
        capacity: how many are kept; those that were not asked for the longest go first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[bytes, Compression] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, link: bytes) -> Compression | None:
        """The one about the beginning of a conversation that ``link`` stands for."""
        with self._lock:
            found = self._known.get(link)
            if found is not None:
                self._known.move_to_end(link)
            return found

    def put(self, link: bytes, compression: Compression) -> None:
        """Remember one."""
        with self._lock:
            self._known[link] = compression
            self._known.move_to_end(link)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
