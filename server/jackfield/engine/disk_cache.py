"""The prefix cache's second tier: blocks as files, which outlive the server.

A block is a file ``<folder>/<model>/<two digits>/<digest>.kv`` (or ``.state``), written once under another name and
then renamed, so that several servers may share the folder: a file is there as a whole or not at all, and one that
another server has deleted is a miss. What the file says of itself is checked before it is used; a file that is not
what it should be is deleted with a warning.

Files are read and written by one thread, which sees bytes only. It never makes anybody wait, and nothing depends on
it: when the disk fails, the tier turns itself off with a warning, and while it does not answer, it is as if off.
"""

import json
import logging
import math
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import cast

from jackfield.engine.blocks import BLOCK_TOKENS, Buffer, Key, Kind, Record
from jackfield.engine.disk_format import FORMAT_VERSION, decode, encode

logger = logging.getLogger(__name__)

QUEUE_BYTES = 64 << 20
"""What may wait to be written; more is dropped, since it is only a cache."""
PATIENCE = 2.0
"""Seconds; a disk that has been at one file for longer counts as off until that ends."""
PATIENCE_PER_BLOCK = 0.01
"""Seconds that a long reading may take on top: slower than that, a fast machine would rather compute."""
RETRY_SECONDS = 600.0
"""A disk that takes no more, being full perhaps, is tried again after so long."""
LOST_KEYS = 1 << 16
STALE_SECONDS = 3600
"""A file that is still being written after so long belongs to a server that has died."""

_MODEL_NAME = re.compile(r"[0-9a-f]{32}")
_FAN_OUT_NAME = re.compile(r"[0-9a-f]{2}")
_FILE_NAME = re.compile(r"(?P<digest>[0-9a-f]{32})\.(?P<kind>kv|state)")
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}\.tmp")

_WEIGHTS = {".safetensors", ".gguf", ".npz", ".bin"}
_SETTINGS = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}


def identity_of(folder: Path, *settings: str) -> str:
    """What blocks of the model in ``folder`` are bound to, as a digest in hexadecimal.

    Of weight files it takes names, sizes and times of change, of the small files (configuration, tokenizer) the
    contents; and the versions of all that computes keys and values. ``settings`` is what else they depend on.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS | _SETTINGS)
    parts = [part for path in files for part in (path.name, _fingerprint(path))]
    parts += [version(package) for package in ("mlx", "mlx-lm", "jackfield")]
    parts += [str(BLOCK_TOKENS), str(FORMAT_VERSION), *settings]
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _fingerprint(path: Path) -> str:
    if path.suffix in _SETTINGS:
        return blake2b(path.read_bytes()).hexdigest()
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"


@dataclass(slots=True)
class Reading:
    """Records that are being read, in order, up to the first that cannot be had."""

    keys: list[Key]
    deadline: float
    """When it has taken too long, on ``time.monotonic``'s clock."""
    records: list[Record] = field(default_factory=list)
    damaged: bool = False
    """Whether the first one missing was there, but not what it should be."""
    cancelled: bool = False
    """Set by who does not wait for it any more."""
    done: threading.Event = field(default_factory=threading.Event)


class DiskCache:
    """Blocks of one model as files. All methods are for one thread, the engine's, and none waits unless it says so.

    Args:
        folder: shared by all models, made if need be; what is in it and is not ours is left alone.
        budget: bytes that the files of all models together may take. Another server that shares the folder is seen
            whenever this one makes room, so together they may be over it by a tenth.
        identity: what the blocks are bound to; see :func:`identity_of`.
        queue_bytes: the most that may wait to be written.
    """

    def __init__(self, folder: Path, budget: int, identity: str, queue_bytes: int = QUEUE_BYTES) -> None:
        self.folder = folder
        self.budget = budget
        self.queue_bytes = queue_bytes
        self.nbytes = 0
        self.evictions = 0
        self.discarded = 0
        """Files that were not what they should be."""
        self.dropped = 0
        """Blocks that were not written, because too many waited."""
        self.lost: deque[Key] = deque(maxlen=LOST_KEYS)
        """Blocks whose files have had to go; for who wants to know, to be emptied by them."""
        self._identity = identity
        self._own = folder / blake2b(identity.encode(), digest_size=16).hexdigest()
        self._held: set[Key] = set()
        self._queue: OrderedDict[Key, tuple[Record, int]] = OrderedDict()
        self._queued = 0
        self._readings: deque[Reading] = deque()
        self._deletions: deque[Key] = deque()
        self._changed = threading.Condition()
        self._closing = self._giving_up = self._complained = False
        self._failed = -math.inf
        """When the disk took no more."""
        self._began: float | None = None
        """When the thread began what it is doing now, with one file or in all."""
        self._open()
        self._thread = threading.Thread(target=self._run, name="jackfield-disk-cache", daemon=True)
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """Bytes of memory that what waits to be written takes."""
        return self._queued

    @property
    def stuck(self) -> bool:
        """Whether the disk has not answered for so long that nobody should count on it."""
        began = self._began
        return began is not None and time.monotonic() - began > PATIENCE

    def holds(self, key: Key) -> bool:
        """Whether a block can be read, as far as is known."""
        return (key in self._held or key in self._queue) and not self.stuck

    def read(self, keys: Sequence[Key]) -> Reading:
        """Begin to read blocks."""
        reading = Reading(list(keys), time.monotonic() + PATIENCE + PATIENCE_PER_BLOCK * len(keys))
        with self._changed:
            if self._closing:
                reading.done.set()
            else:
                self._readings.append(reading)
            self._changed.notify_all()
        return reading

    def late(self, reading: Reading) -> bool:
        """Whether it is not worth while to wait any longer."""
        return not reading.done.is_set() and (self.stuck or time.monotonic() > reading.deadline)

    def wants(self, key: Key, nbytes: int, timeout: float = 0) -> bool:
        """Whether a block should be given to :meth:`write`: it is not here, and there is room in the queue for it.

        Waits for room up to ``timeout`` seconds; a block for which there is none counts as dropped.
        """
        if self._off or self._closing or self.stuck or self.holds(key) or nbytes > self.budget:
            return False
        with self._changed:
            room = self._changed.wait_for(lambda: self._off or self._has_room(nbytes), timeout)
        self.dropped += not room
        return room and not self._off

    def _has_room(self, nbytes: int) -> bool:
        return not self._queue or self._queued + nbytes <= self.queue_bytes

    def write(self, record: Record, age: int = 0) -> None:
        """Write a block soon. Of blocks that are given together, those of a higher ``age`` are deleted first."""
        with self._changed:
            self._drop(record.key)
            self._queue[record.key] = record, time.time_ns() - age
            self._queued += record.nbytes
            self._changed.notify_all()

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete blocks that turned out to be wrong; they are not found any more, and their files go soon."""
        with self._changed:
            for key in keys:
                self._held.discard(key)
                self._drop(key)
            self._deletions.extend(keys)
            self._changed.notify_all()

    def _drop(self, key: Key) -> None:
        waiting = self._queue.pop(key, None)
        self._queued -= waiting[0].nbytes if waiting else 0

    def forget_queue(self) -> None:
        """Write nothing of what waits to be written."""
        with self._changed:
            self._queue.clear()
            self._queued = 0
            self._changed.notify_all()

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._giving_up = True
        self._thread.join(1.0)

    # What follows runs on the thread of the disk cache, but for _open.

    def _open(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own.mkdir(mode=0o700, exist_ok=True)
            # Prompts are private, also when somebody else has made the folder.
            self._own.chmod(0o700)
            self._held = {_key(Path(entry.name)) for entry in _files(self._own) if _FILE_NAME.fullmatch(entry.name)}
        except OSError as error:
            self._turn_off(error)

    @property
    def _off(self) -> bool:
        return time.monotonic() - self._failed < RETRY_SECONDS

    def _turn_off(self, error: OSError) -> None:
        if not self._complained:
            logger.warning(
                "The prefix cache on disk writes no more, but for an attempt every %g minutes: %s",
                RETRY_SECONDS / 60,
                error,
            )
        self._complained = True
        self._failed = time.monotonic()
        self.forget_queue()

    def _turn_on(self) -> None:
        if self._complained:
            logger.info("The prefix cache on disk writes again.")
        self._complained = False

    def _run(self) -> None:
        self._guarded(partial(self._make_room, 0))
        while job := self._next():
            self._guarded(job)
            # What it has read or written would stay in memory until there is something else to do.
            del job
        while self._readings:
            self._readings.popleft().done.set()

    def _guarded(self, job: Callable[[], object]) -> None:
        self._began = time.monotonic()
        try:
            job()
        except OSError as error:
            self._turn_off(error)
        except Exception:
            logger.exception("The prefix cache on disk failed.")
        finally:
            self._began = None

    def _next(self) -> Callable[[], object] | None:
        """The next thing to do, waiting for it; reads before writes, since somebody waits for them. None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._deletions or self._readings or self._queue or self._closing)
            if self._giving_up:
                return None
            if self._deletions:
                return partial(self._unlink, self._deletions.popleft())
            if self._readings:
                return partial(self._serve, self._readings.popleft())
            return partial(self._save, *next(iter(self._queue.values()))) if self._queue else None

    def _unlink(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)
        # It may have been written just before.
        self._lose(key)

    def _serve(self, reading: Reading) -> None:
        try:
            for key in reading.keys:
                self._began = time.monotonic()
                if reading.cancelled or not self._load(key, reading):
                    break
            self._touch(reading.keys[: len(reading.records)])
        finally:
            reading.done.set()

    def _load(self, key: Key, reading: Reading) -> bool:
        """Read one block; False when it cannot be had."""
        waiting = self._queue.get(key)
        if waiting:
            reading.records.append(waiting[0])
            return True
        path = self._path(key)
        try:
            reading.records.append(decode(path.read_bytes(), key, self._identity))
        except OSError as error:
            self._lose(key)
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                logger.warning("A file of the prefix cache cannot be read: %s", error)
        except ValueError as error:
            self._discard(path, error)
            reading.damaged = True
        return bool(reading.records) and reading.records[-1].key == key

    def _lose(self, key: Key) -> None:
        self._held.discard(key)
        self.lost.append(key)

    def _discard(self, path: Path, reason: ValueError) -> None:
        logger.warning("A file of the prefix cache is discarded (%s): %s", reason, path)
        self._held.discard(_key(path))
        self.discarded += 1
        with suppress(OSError):
            path.unlink()

    def _touch(self, keys: Sequence[Key]) -> None:
        """Mark files as just used: a block always later than those that follow it, which are useless without it."""
        now = time.time_ns()
        for age, key in enumerate(keys):
            with suppress(OSError):
                os.utime(self._path(key), ns=(now - age, now - age))

    def _save(self, record: Record, stamp: int) -> None:
        try:
            path = self._path(record.key)
            parts = list(encode(record, self._identity))
            size = sum(len(part) for part in parts)
            if not path.exists() and self._make_room(size):
                self._write(path, parts, stamp)
                self.nbytes += size
                self._turn_on()
            if path.exists():
                self._held.add(record.key)
        finally:
            with self._changed:
                self._drop(record.key)
                self._changed.notify_all()

    def _write(self, path: Path, parts: Sequence[Buffer], stamp: int) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{token_hex(8)}.tmp")
        # Not synchronised: what a power cut leaves of it fails its checksum.
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(parts)
            os.utime(temporary, ns=(stamp, stamp))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, size: int) -> bool:
        """Delete what was used least recently until ``size`` bytes fit; False if they never will."""
        if size and self.nbytes + size <= self.budget:
            return True
        files = self._survey()
        self.nbytes = sum(bytes_ for _, bytes_, _ in files)
        if self.nbytes + size > self.budget:
            # More than needed, so that the folder is not gone through for every file.
            self._delete(files, self.budget * 9 // 10 - size)
        return self.nbytes + size <= self.budget

    def _survey(self) -> list[tuple[int, int, Path]]:
        """Time of last use (ns), bytes and path of all models' files, oldest first."""
        found = []
        for model in _folders(self.folder, _MODEL_NAME):
            for entry in _files(model):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        stale = time.time_ns() - STALE_SECONDS * 10**9
        for used, _, path in found:
            if path.suffix == ".tmp" and used < stale:
                path.unlink(missing_ok=True)
        return sorted(one for one in found if one[2].suffix != ".tmp")

    def _delete(self, files: Sequence[tuple[int, int, Path]], target: int) -> None:
        for _, size, path in files:
            if self.nbytes <= target:
                break
            path.unlink(missing_ok=True)
            self.nbytes -= size
            self.evictions += 1
            if path.parent.parent == self._own:
                self._lose(_key(path))

    def _path(self, key: Key) -> Path:
        kind, own = key
        return self._own / own.hex()[:2] / f"{own.hex()}.{kind}"


def _key(path: Path) -> Key:
    return cast(Kind, path.suffix[1:]), bytes.fromhex(path.stem)


def _files(model: Path) -> Iterator[os.DirEntry[str]]:
    """All files of ours in one model's folder; those, too, that are being written."""
    for folder in _folders(model, _FAN_OUT_NAME):
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if _FILE_NAME.fullmatch(entry.name) or _TEMPORARY_NAME.fullmatch(entry.name):
                    yield entry


def _folders(parent: Path, name: re.Pattern[str]) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(parent) as entries:
        return [Path(entry.path) for entry in entries if name.fullmatch(entry.name) and entry.is_dir()]
    return []
