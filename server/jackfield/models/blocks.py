"""ggml's quantized blocks as MLX's affine groups: ``value = scale * q + bias``, 32 values a group.

Block layouts: ``ggml-common.h``; what they mean: ``dequantize_row_*`` in ``ggml-quants.c``. MLX packs the unsigned q of
a row as one little-endian bit stream into 32-bit words.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 come out exactly as they are. Q4_K and Q5_K round a group's scale and bias to 16 bits.
Q6_K has a scale for each 16 values, which MLX has not: it is quantized again to 8 bits, with at most an eighth of its
own step as error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP = 32

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

TOP = np.uint8(4)
"""By how much the bits above a half byte are shifted."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of quantized values: q (rows, columns) below 2**bits, scales and biases (rows, columns / 32)."""

    q: Bytes
    scales: Floats
    biases: Floats


@dataclass(frozen=True, slots=True)
class Decoder:
    """How one ggml type becomes MLX's groups."""

    bits: int
    decode: Callable[[Bytes], Groups]
    """From raw blocks, shape (blocks, bytes of a block); rows are restored by the caller."""


def _half(raw: Bytes) -> Floats:
    """The 16-bit floats in the last axis' bytes."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """Low halves of all bytes, then their high halves: ggml's order inside 32 values."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """Bit i of a block's 32-bit mask is the highest bit of its value i."""
    return np.unpackbits(np.ascontiguousarray(raw), axis=-1, bitorder="little") << TOP


def _q4_0(raw: Bytes) -> Groups:
    scale = _half(raw[:, :2])
    return Groups(_nibbles(raw[:, 2:]), scale, -8 * scale)


def _q4_1(raw: Bytes) -> Groups:
    return Groups(_nibbles(raw[:, 4:]), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q5_0(raw: Bytes) -> Groups:
    scale = _half(raw[:, :2])
    return Groups(_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), scale, -16 * scale)


def _q5_1(raw: Bytes) -> Groups:
    return Groups(_nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8]), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Groups:
    scale = _half(raw[:, :2])
    return Groups(raw[:, 2:] ^ np.uint8(128), scale, -128 * scale)  # from signed to unsigned


def _scales_k(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and minima from 12 bytes (``get_scale_min_k4``)."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << TOP], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << TOP], axis=-1)
    return scales, minima


def _affine_k(raw: Bytes, q: Bytes) -> Groups:
    """Super-blocks of eight groups that share two 16-bit factors."""
    scales, minima = _scales_k(raw[:, 4:16])
    return Groups(q.reshape(len(raw), -1), _half(raw[:, :2]) * scales, -_half(raw[:, 2:4]) * minima)


def _q4_k(raw: Bytes) -> Groups:
    return _affine_k(raw, _nibbles(raw[:, 16:].reshape(-1, 4, 32)))


def _q5_k(raw: Bytes) -> Groups:
    # Byte i of the 32 mask bytes holds the highest bits of values i, i + 32, ..., lowest bit first.
    masks = np.unpackbits(raw[:, 16:48, None], axis=-1, bitorder="little").transpose(0, 2, 1)
    q = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _affine_k(raw, q | masks << TOP)


def _q6_k(raw: Bytes) -> Groups:
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    high = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    q = (low | high << TOP).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32) * _half(raw[:, 208:])
    return _quantize8((q * scales[..., None]).reshape(len(raw), -1))


def _quantize8(values: Floats) -> Groups:
    """The nearest 8-bit affine groups."""
    groups = values.reshape(len(values), -1, GROUP)
    low, high = groups.min(-1), groups.max(-1)
    biases = low.astype(np.float16).astype(np.float32)
    scales = ((high - biases) / 255).astype(np.float16).astype(np.float32)
    steps = np.where(scales == 0, 1, scales)
    q = np.rint((groups - biases[..., None]) / steps[..., None]).clip(0, 255)
    return Groups(q.astype(np.uint8).reshape(values.shape), scales, biases)


DECODERS = {
    "Q4_0": Decoder(4, _q4_0),
    "Q4_1": Decoder(4, _q4_1),
    "Q5_0": Decoder(5, _q5_0),
    "Q5_1": Decoder(5, _q5_1),
    "Q8_0": Decoder(8, _q8_0),
    "Q4_K": Decoder(4, _q4_k),
    "Q5_K": Decoder(5, _q5_k),
    "Q6_K": Decoder(8, _q6_k),
}


def decode(kind: str, block_bytes: int, rows: Bytes) -> Groups:
    """Raw rows, shape (rows, bytes of a row), as groups."""
    groups = DECODERS[kind].decode(rows.reshape(-1, block_bytes))
    count = len(rows)
    return Groups(groups.q.reshape(count, -1), groups.scales.reshape(count, -1), groups.biases.reshape(count, -1))


def pack(q: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Values below 2**bits, shape (rows, columns), as MLX's words: shape (rows, columns * bits / 32)."""
    if bits == 8:
        stream = np.ascontiguousarray(q)
    elif bits == 4:
        stream = q[:, ::2] | q[:, 1::2] << TOP
    else:
        each = np.unpackbits(q[..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(each.reshape(len(q), -1), axis=-1, bitorder="little")
    return stream.view("<u4")
