"""What names of GGUF files say: how they are quantized, and which parts a model was split into.

Files are chosen as llama.cpp's ``-hf org/name:Q4_K_M`` chooses them (``common/download.cpp``), but for ``F16``, which
means no ``BF16`` here, and for ``Q4_K_M`` where there is a ``UD-Q4_K_M`` too: the shortest name counts.
"""

import re
from collections.abc import Iterable

ENDING = ".gguf"
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"[-.](?P<tag>[a-z0-9_]+)", re.ASCII | re.IGNORECASE)
QUANTIZATION = re.compile(r"(i?q\d.*|tq\d.*|b?f16|f32|mxfp4.*|nvfp4.*)", re.ASCII | re.IGNORECASE)
OTHERS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""In names of files that go with a model and are none."""


def parts_of(name: str) -> list[str]:
    """The names of all parts of the model that ``name`` is a part of; itself, where it has not been split."""
    match = SPLIT.fullmatch(name)
    if match is None or not int(match["count"]):
        return [name]
    return [f"{match['stem']}-{number:05}-of-{match['count']}{ENDING}" for number in range(1, int(match["count"]) + 1)]


def pick(names: Iterable[str], asked: str) -> str | None:
    """The file that ``asked`` means, a name or a quantization such as ``Q4_K_M``; of a split one the first part."""
    found = [name for name in _models(names) if _means(name, asked)]
    return min(found, key=lambda name: (len(name), name), default=None)


def quantizations(names: Iterable[str]) -> list[str]:
    """What may be asked for, as far as names tell."""
    tags = (_tag(name) for name in _models(names))
    return sorted({tag for tag in tags if tag is not None})


def _models(names: Iterable[str]) -> list[str]:
    """Files that hold models, or parts of them."""
    files = [name for name in names if name.lower().endswith(ENDING)]
    return [name for name in files if not any(other in name.rpartition("/")[2] for other in OTHERS)]


def _means(name: str, asked: str) -> bool:
    if asked.lower().endswith(ENDING):
        return asked.lower() in {part.lower() for part in parts_of(name)}
    return re.search(rf"(^|[-._/]){re.escape(asked)}[-./]", name, re.IGNORECASE) is not None


def _tag(name: str) -> str | None:
    match = SPLIT.fullmatch(name)
    stem = match["stem"] if match else name[: -len(ENDING)]
    tags = [tag for tag in TAG.findall(stem) if QUANTIZATION.fullmatch(tag)]
    return tags[-1].upper() if tags else None
