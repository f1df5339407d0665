"""Sizes of memory as people write them."""

import re

from jackfield.errors import ConfigurationError

SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<prefix>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE | re.ASCII)
PREFIXES = ("", "k", "m", "g", "t")


def parse_size(text: str, *, binary: bool = False) -> int:
    """Bytes of ``48GB`` (10^9 each), ``48GiB`` (2^30 each), ``24g`` (as GB) or ``1000000``.

    ``binary`` reads GB as GiB, as memory modules are sold.

    Raises:
        ConfigurationError: it is no size, or none above zero.
    """
    match = SIZE.fullmatch(text.strip())
    factor = 1024 if match and (binary or match["binary"]) else 1000
    size = int(float(match["number"]) * factor ** PREFIXES.index(match["prefix"].lower())) if match else 0
    if size < 1:
        raise ConfigurationError(
            f"{text!r} is not a size of memory.", suggestions=("Write it like 48GB, 48GiB, 512MB or in bytes.",)
        )
    return size


def gigabytes(size: int) -> str:
    """Bytes for people: in units of 10^9, or smaller ones below a tenth of that."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size) >= unit / 10:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
