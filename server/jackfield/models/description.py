"""What is known of a model before it is fetched: its config and where that comes from, its files, the disk it needs.

Nothing here downloads weights or converts files. Without a network, well-known models are found in the catalogue.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from jackfield.errors import ModelLoadError
from jackfield.models import catalogue, convert, starter
from jackfield.models.folder import Folder, read_config
from jackfield.models.gguf import GGUF, parts
from jackfield.models.gguf_source import GGUFFile, place_of
from jackfield.models.hub import Hub, cached, look_up
from jackfield.models.hub_client import unreachable
from jackfield.models.hub_gguf import HubGGUF, converted, downloaded, preview
from jackfield.models.sources import resolve
from jackfield.models.starter import Starter

STARTER_DISK_BYTES = 2 * (starter.WHEEL.nbytes + starter.GGUF_BYTES)


@dataclass(frozen=True, slots=True)
class Description:
    """A model that may not be here yet."""

    name: str
    config: dict[str, Any]
    origin: str
    """Where the config comes from, for people."""
    folder: Path | None = None
    """Where config, weights and tokenizer are; None if they have to be fetched or converted first."""
    disk_bytes: int | None = 0
    """What fetching will write; None if that is not known."""
    disk: Path = Path()
    """Where it will write that."""
    fetching: str = "to be downloaded"

    @property
    def downloaded(self) -> bool:
        """Whether it can be served without fetching anything."""
        return self.folder is not None


def describe_model(name: str, *, cache: Path) -> Description:
    """Find out about the model ``name``, in any form that `sources.resolve` takes.

    Raises:
        ModelLoadError: there is no such model, or nothing is known about it without a network.
    """
    if Starter().matches(name):
        return _starter(name, cache)
    if HubGGUF().matches(name):
        return _hub_gguf(name, cache)
    if GGUFFile().matches(name):
        return _gguf(name, cache)
    if Folder().matches(name) or not Hub().matches(name):
        folder = resolve(name, cache=cache)
        return Description(name, read_config(folder), "config.json in its folder", folder)
    return _hub(name)


def local_folder(name: str, *, cache: Path) -> Path | None:
    """Where the model ``name`` is, if it can be served without fetching or converting anything; asks nobody.

    Raises:
        ModelLoadError: there is no such model on this machine, where it would have to be.
    """
    if HubGGUF().matches(name):
        return converted(name, cache)
    if Hub().matches(name) and not Folder().matches(name):
        return cached(name)
    return describe_model(name, cache=cache).folder


def _starter(name: str, cache: Path) -> Description:
    target = cache / "models" / f"starter-{starter.GGUF_SHA256[:12]}-{convert.VERSION}"
    if target.is_dir():
        return Description(name, read_config(target), "config.json in its folder", target)
    config = catalogue.config_for(name)
    assert config is not None  # noqa: S101 - the catalogue has it
    return Description(name, config, "the built-in table", disk_bytes=STARTER_DISK_BYTES, disk=cache)


def _gguf(name: str, cache: Path) -> Description:
    """From the header alone: converting a large file takes minutes."""
    path = place_of(name)
    if not path.is_file():
        resolve(name, cache=cache)  # which says what is wrong with it
    return _to_convert(name, path, cache)


def _to_convert(name: str, path: Path, cache: Path) -> Description:
    with GGUF(path) as file:
        config = _gguf_config(file)
    size = sum(part.stat().st_size for part in parts(path))
    return Description(
        name, config, "the header of the GGUF file", disk_bytes=size, disk=cache, fetching="to be converted"
    )


def _hub_gguf(name: str, cache: Path) -> Description:
    """From what was made of it, from the download, or from the header alone, which is asked of the Hub."""
    if (folder := converted(name, cache)) is not None:
        return Description(name, read_config(folder), "config.json in its folder", folder)
    if (path := downloaded(name)) is not None:
        return _to_convert(name, path, cache)
    with preview(name) as found:
        if found is None:
            raise unreachable(name)
        described = _to_convert(name, found.path, cache)
    return replace(
        described,
        origin="the header of the GGUF file on the Hugging Face Hub",
        disk_bytes=found.missing_bytes + found.nbytes,
        disk=Path(HF_HUB_CACHE),
        fetching="to be downloaded and converted",
    )


def _gguf_config(file: GGUF) -> dict[str, Any]:
    """What the converted folder's config.json will say, and besides which layers stay unquantized."""
    shape = convert._shape(file)
    names = (tensor for tensor in file.tensors.values() if tensor.name != convert.ROPE_FACTORS)
    targets = [convert._target(file, tensor, shape) for tensor in names]
    config = convert._config(file, shape, targets)
    if "quantization" in config:
        plain = {target.module: False for target in targets if target.kind == "weight" and target.bits is None}
        config["quantization"] = plain | config["quantization"]
    return config


def _hub(name: str) -> Description:
    listing = look_up(name)
    if listing is not None and listing.folder is not None:
        return Description(name, listing.config, "config.json in Hugging Face's cache", listing.folder)
    disk = Path(HF_HUB_CACHE)
    if listing is not None:
        return Description(
            name, listing.config, "config.json on the Hugging Face Hub", None, listing.missing_bytes, disk
        )
    if (config := catalogue.config_for(name)) is not None:
        return Description(
            name, config, "the built-in table (the Hugging Face Hub cannot be reached)", None, None, disk
        )
    raise ModelLoadError(
        f"The Hugging Face Hub cannot be reached, and {name} is neither in the cache nor in the built-in table.",
        suggestions=(
            "Check the network, HTTPS_PROXY and HF_HUB_OFFLINE; a mirror is named with HF_ENDPOINT.",
            "Without a network these are known: Qwen2.5(-Coder) and Qwen3 in all usual sizes, unquantized or -Nbit.",
        ),
    )
