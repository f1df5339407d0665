"""Read GGUF files: header, metadata and tensors, with every length checked against the file.

The format is specified in ggml's ``docs/gguf.md``. MLX can read these files too, but trusts them, so that a damaged
one ends the process. What llama.cpp's ``gguf-split`` has split is read as one: the first part has the metadata.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from jackfield.errors import ModelLoadError
from jackfield.models.gguf_names import parts_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32
# gguf_metadata_value_type -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a ggml tensor type is stored: blocks of ``block`` values in ``size`` bytes."""

    name: str
    block: int
    size: int


# enum ggml_type in ggml.h, with the block structures of ggml-common.h. Files may hold other types: see `type_name`.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}
OTHER_TYPES = {
    10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class GGUFError(ModelLoadError):
    """The file is not a GGUF file that can be served."""


def damaged(path: Path, why: str) -> GGUFError:
    """The error for a file that breaks the format's rules."""
    return GGUFError(
        f"{path.name} is not a usable GGUF file: {why}.",
        suggestions=("Download the file again and compare its checksum.", "Convert the original model anew."),
    )


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    """Rows first, as in NumPy; GGUF writes the fastest dimension first."""
    offset: int
    """Bytes from the start of the file."""
    part: int = 0
    """Which one of the model's files."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of the last dimension."""
        return self.shape[-1] // self.type.block * self.type.size

    @property
    def rows(self) -> int:
        """How many rows the tensor has."""
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes


class GGUF:
    """An open GGUF file, with its other parts if it was split: ``metadata``, ``tensors`` by name, and their raw rows. A
    context manager.

    Raises:
        GGUFError: the file is damaged, or of a version or tensor type that is not supported, or a part is missing.
    """

    def __init__(self, path: Path) -> None:
        paths = parts(path)
        self.path = paths[0]
        with ExitStack() as opened:
            self._files = [opened.enter_context(one.open("rb")) for one in paths]
            headers = [_Header(one, file) for one, file in zip(paths, self._files, strict=True)]
            self.metadata = headers[0].metadata
            self.tensors = {
                name: replace(tensor, part=index)
                for index, header in enumerate(headers)
                for name, tensor in header.tensors.items()
            }
            self._check_parts(headers)
            self._opened = opened.pop_all()

    def _check_parts(self, headers: "list[_Header]") -> None:
        """See that these files are one model."""
        count = self.metadata.integer("split.count", 1)
        if max(count, 1) != len(headers):
            raise GGUFError(
                f"{self.path.name} is one of {count} parts of a model.",
                suggestions=("Put all parts into one folder, with names such as model-00001-of-00003.gguf.",),
            )
        total = sum(len(header.tensors) for header in headers)
        if len(self.tensors) != total or self.metadata.integer("split.tensors.count", total) != total:
            raise damaged(self.path, "its parts do not belong together")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def rows(self, tensor: Tensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of some rows: shape (stop - start, tensor.row_bytes)."""
        # Read, not mapped: a file that shrinks meanwhile must not end the process with a bus error.
        file = self._files[tensor.part]
        file.seek(tensor.offset + start * tensor.row_bytes)
        data = file.read((stop - start) * tensor.row_bytes)
        if len(data) != (stop - start) * tensor.row_bytes:
            raise damaged(self.path, f"tensor {tensor.name!r} is cut off")
        return np.frombuffer(data, np.uint8).reshape(stop - start, tensor.row_bytes)


def parts(path: Path) -> list[Path]:
    """All files of the model in ``path``.

    Raises:
        GGUFError: one of them is not there.
    """
    paths = [path.with_name(name) for name in parts_of(path.name)]
    if path.exists() and (missing := [one.name for one in paths if not one.exists()]):
        raise GGUFError(
            f"The model in {path} is incomplete: {len(missing)} parts are missing, for example {missing[0]}.",
            suggestions=("Put all parts into one folder.",),
        )
    return paths


class _Header:
    """Everything before the tensors' data."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = path.stat().st_size
        if self._bytes(4) != MAGIC:
            raise damaged(path, "it does not start with 'GGUF'")
        self._check_version()
        tensor_count, metadata_count = self._scalar("Q"), self._scalar("Q")
        self.metadata = Metadata(path, dict(self._entry() for _ in self._range(metadata_count)))
        table = [self._tensor() for _ in self._range(tensor_count)]
        self.tensors = {tensor.name: tensor for tensor in self._located(table)}
        if len(self.tensors) != tensor_count:
            raise damaged(path, "two tensors have the same name")

    def _check_version(self) -> None:
        version = self._scalar("I")
        if version not in VERSIONS:
            raise GGUFError(
                f"{self._path.name} is a GGUF file of version {version}; only 2 and 3, little-endian, can be read.",
                suggestions=("Convert the original model anew with a current llama.cpp.",),
            )

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise damaged(self._path, "it ends in the middle of its header")
        return self._file.read(count)

    def _range(self, count: int) -> range:
        """``count`` steps, unless the file is too short for as many items of a byte each."""
        if count > self._size:
            raise damaged(self._path, f"its header announces {count} items")
        return range(count)

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0]

    def _string(self) -> str:
        # Vocabularies hold byte sequences that are no valid UTF-8 in some files; nothing that we use does.
        return self._bytes(self._scalar("Q")).decode("utf-8", "replace")

    def _entry(self) -> tuple[str, Any]:
        return self._string(), self._value(self._scalar("I"))

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind == ARRAY and depth < MAX_NESTING:
            return self._array(depth)
        raise damaged(self._path, f"its metadata has a value of unknown type {kind}")

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind in SCALARS:
            code = SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self._bytes(self._checked(count) * struct.calcsize(code))))
        return [self._value(kind, depth + 1) for _ in self._range(count)]

    def _checked(self, count: int) -> int:
        return len(self._range(count))

    def _tensor(self) -> Tensor:
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise damaged(self._path, f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        kind = self._tensor_type(name, self._scalar("I"))
        if not all(shape) or shape[-1] % kind.block:
            raise damaged(self._path, f"tensor {name!r} has the impossible shape {list(shape)}")
        return Tensor(name, kind, shape, self._scalar("Q"))

    def _tensor_type(self, name: str, number: int) -> TensorType:
        if (kind := TENSOR_TYPES.get(number)) is not None:
            return kind
        if number not in OTHER_TYPES:
            raise damaged(self._path, f"tensor {name!r} has the unknown type {number}")
        raise GGUFError(
            f"{self._path.name} has tensors of type {OTHER_TYPES[number]}, which cannot be served.",
            suggestions=(f"Take a file with other quantization: {', '.join(t.name for t in TENSOR_TYPES.values())}.",),
        )

    def _located(self, table: list[Tensor]) -> Iterator[Tensor]:
        """The tensors with offsets from the start of the file, all of them inside it."""
        alignment = self.metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
        if alignment <= 0:
            raise damaged(self._path, f"its alignment is {alignment}")
        data = -(-self._file.tell() // alignment) * alignment
        for tensor in table:
            placed = Tensor(tensor.name, tensor.type, tensor.shape, data + tensor.offset)
            if placed.offset + placed.nbytes > self._size:
                raise damaged(self._path, f"tensor {tensor.name!r} reaches beyond its end; was the download cut off?")
            yield placed


class Metadata:
    """A GGUF file's key-value pairs, with their types checked on reading."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; an error if it is missing and there is no default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; an error if it is missing and there is no default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "a boolean")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A string; an error if it is missing and there is no default."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings."""
        return self._list(key, str, "a list of strings")

    def numbers(self, key: str) -> list[float]:
        """A list of numbers, integers among them."""
        return self._list(key, int | float, "a list of numbers")

    def _list(self, key: str, kind: Any, name: str) -> list[Any]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self._wrong(key, name)
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise damaged(self._path, f"its metadata has no {key!r}")
        return value

    def _wrong(self, key: str, expected: str) -> GGUFError:
        return damaged(self._path, f"{key!r} in its metadata is not {expected}")
