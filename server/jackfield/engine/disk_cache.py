"""The prefix cache's second tier: blocks as files, which outlive the server.

A block is a file ``<folder>/<model>/<two digits>/<digest>.kv`` (or ``.state``), written once under another name and
then renamed, so that several servers may share the folder: a file is there as a whole or not at all, and one that
another server has deleted is a miss. What the file says of itself is checked before it is used; a file that is not
what it should be is deleted with a warning.

Files are read and written by one thread, which sees bytes only. It never makes anybody wait, and nothing depends on
it: when the disk fails, the tier turns itself off with a warning.
"""

import json
import logging
import os
import re
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b, sha256
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from secrets import token_hex
from typing import cast

from jackfield.engine.blocks import BLOCK_TOKENS, Buffer, Key, Kind, Link, Record, size_of

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
QUEUE_BYTES = 256 << 20
"""What may wait to be written; more is dropped, since it is only a cache."""
LOST_KEYS = 1 << 16
STALE_SECONDS = 3600
"""A file that is still being written after so long belongs to a server that has died."""

_HEAD = struct.Struct("<8sII")
"""Magic, format version, bytes of the header (JSON) that follows; then the arrays, then their SHA-256."""
_MAGIC = b"JACKFKV\0"
# SHA-256 rather than a CRC: no damage is mistaken for good, and with the CPU's own instructions it is half as fast as
# CRC-32 (1.4 GB/s), much faster than BLAKE2b (0.5 GB/s), and a hundred times faster than computing the block again.
_CHECKSUM_BYTES = sha256().digest_size

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


def encode(record: Record, identity: str) -> Iterator[Buffer]:
    """A record as the parts of a file."""
    header = {
        "identity": identity,
        "kind": record.kind,
        "link": [part.hex() for part in record.link],
        "layout": record.layout,
        "types": record.types,
    }
    text = json.dumps(header).encode()
    checksum = sha256()
    for part in (_HEAD.pack(_MAGIC, FORMAT_VERSION, len(text)), text, *record.payload):
        checksum.update(part)
        yield part
    yield checksum.digest()


def decode(data: bytes, key: Key, identity: str) -> Record:
    """The record that a file holds.

    Raises:
        ValueError: the file is damaged, or it is not the record ``key`` of ``identity``.
    """
    view = memoryview(data)
    body, checksum = view[:-_CHECKSUM_BYTES], view[-_CHECKSUM_BYTES:]
    if len(data) < _HEAD.size + _CHECKSUM_BYTES or sha256(body).digest() != checksum:
        raise ValueError("it is damaged")
    magic, format_version, header_bytes = _HEAD.unpack_from(body)
    if (magic, format_version) != (_MAGIC, FORMAT_VERSION):
        raise ValueError("it has another format")
    start = _HEAD.size + header_bytes
    record, owner = _parse(bytes(body[_HEAD.size : start]), body[start:])
    if (owner, record.key) != (identity, key):
        raise ValueError("it belongs to another model or other tokens")
    return record


def _parse(header: bytes, payload: memoryview) -> tuple[Record, str]:
    try:
        fields = json.loads(header)
        link = Link(*(bytes.fromhex(part) for part in fields["link"]))
        types = tuple((dtype, tuple(shape)) for dtype, shape in fields["types"])
        ends = [0, *accumulate(size_of(*type_) for type_ in types)]
        parts = tuple(payload[start:end] for start, end in pairwise(ends))
        return Record(fields["kind"], link, fields["layout"], types, parts), fields["identity"]
    except (KeyError, TypeError) as error:
        raise ValueError("its header is not understood") from error


@dataclass(slots=True)
class Reading:
    """Records that are being read, in order, up to the first that cannot be had."""

    keys: list[Key]
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
        self._off = self._closing = self._giving_up = False
        self._open()
        self._thread = threading.Thread(target=self._run, name="jackfield-disk-cache", daemon=True)
        self._thread.start()

    def holds(self, key: Key) -> bool:
        """Whether a block can be read, as far as is known."""
        return key in self._held or key in self._queue

    def read(self, keys: Sequence[Key]) -> Reading:
        """Begin to read blocks."""
        reading = Reading(list(keys))
        with self._changed:
            if self._closing:
                reading.done.set()
            else:
                self._readings.append(reading)
            self._changed.notify_all()
        return reading

    def wants(self, key: Key, nbytes: int, timeout: float = 0) -> bool:
        """Whether a block should be given to :meth:`write`: it is not here, and there is room in the queue for it.

        Waits for room up to ``timeout`` seconds; a block for which there is none counts as dropped.
        """
        if self._off or self._closing or self.holds(key) or nbytes > self.budget:
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

    def _turn_off(self, error: OSError) -> None:
        if not self._off:
            logger.warning("The prefix cache on disk writes no more: %s", error)
        self._off = True
        self.forget_queue()

    def _run(self) -> None:
        self._guarded(partial(self._make_room, 0))
        while job := self._next():
            self._guarded(job)
        while self._readings:
            self._readings.popleft().done.set()

    def _guarded(self, job: Callable[[], object]) -> None:
        try:
            job()
        except OSError as error:
            self._turn_off(error)
        except Exception:
            logger.exception("The prefix cache on disk failed.")

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
