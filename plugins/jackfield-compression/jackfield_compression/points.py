"""Where conversations were compressed, kept on disk: digests and numbers, no text.

What becomes of the beginning of a conversation follows from its messages and from how long it may be. So it is enough
to know at which point that was decided to decide the same again, after a restart or for a conversation that was
forgotten. The digests are keyed with a secret of the file's own: nobody can tell from them what was said.
"""

import logging
import os
import secrets
import struct
import threading
from collections import OrderedDict
from pathlib import Path

logger = logging.getLogger(__name__)

CAPACITY = 10_000
"""Points that are kept; the oldest go first."""

_MAGIC = b"JFPOINT1"
_KEY_BYTES = 16
_RECORD = struct.Struct("<16si")
"""A digest, and a limit in tokens."""


class Points:
    """Limits by digest. From any thread.

    Args:
        file: where they are kept; None keeps them in memory only.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._limits: OrderedDict[bytes, int] = OrderedDict()
        self._written = 0
        self.key = secrets.token_bytes(_KEY_BYTES)
        """Goes into all digests."""
        if file is not None:
            self._load(file)

    def get(self, link: bytes) -> int | None:
        """The limit that a conversation was compressed to at this point, if it was."""
        with self._lock:
            return self._limits.get(link)

    def put(self, link: bytes, limit: int) -> None:
        """Remember a point."""
        with self._lock:
            if self._limits.get(link) == limit:
                return
            self._limits[link] = limit
            self._limits.move_to_end(link)
            while len(self._limits) > CAPACITY:
                self._limits.popitem(last=False)
            self._keep(_RECORD.pack(link, limit))

    def _keep(self, record: bytes) -> None:
        if self._file is None:
            return
        try:
            if self._written >= 2 * CAPACITY:
                self._rewrite(self._file)
            else:
                _write(self._file, record, os.O_APPEND)
                self._written += 1
        except OSError as error:
            self._give_up(error)

    def _load(self, file: Path) -> None:
        try:
            data = file.read_bytes() if file.exists() else b""
            if data.startswith(_MAGIC) and len(data) >= len(_MAGIC) + _KEY_BYTES:
                self._read(data[len(_MAGIC) :])
            # Without half a record at the end, and without too old ones.
            self._rewrite(file)
        except OSError as error:
            self._give_up(error)

    def _read(self, data: bytes) -> None:
        self.key = data[:_KEY_BYTES]
        whole = (len(data) - _KEY_BYTES) // _RECORD.size * _RECORD.size
        records = list(_RECORD.iter_unpack(data[_KEY_BYTES : _KEY_BYTES + whole]))
        self._limits.update(records[-CAPACITY:])

    def _rewrite(self, file: Path) -> None:
        new = file.with_suffix(".new")
        records = b"".join(_RECORD.pack(link, limit) for link, limit in self._limits.items())
        _write(new, _MAGIC + self.key + records, os.O_TRUNC)
        new.replace(file)
        self._written = len(self._limits)

    def _give_up(self, error: OSError) -> None:
        logger.warning("After a restart, compressed conversations will begin differently: %s", error)
        self._file = None


def _write(file: Path, data: bytes, how: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
