"""What has to be the same in all processes of a group: they would compute something else, or wait for each other."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jackfield.models.adapter_folder import contents_of_adapter
from jackfield.models.folder import contents_of

COMPUTING = ("jackfield", "mlx", "mlx-lm")
"""Distributions whose versions count."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a process has of that."""

    versions: Mapping[str, str]
    contents: str
    """Of the model's files, as a digest."""
    adapters: Mapping[str, str]
    """The same of each adapter's, by names in the order of their numbers."""
    plugins: Sequence[str]
    """Those that prepare the model, with their versions, in the order in which they do."""

    @classmethod
    def of(cls, folder: Path, adapters: Mapping[str, Path], plugins: Sequence[str]) -> "Likeness":
        """This process's, with the model and the adapters in these folders."""
        digests = {name: contents_of_adapter(folder) for name, folder in adapters.items()}
        versions = {name: importlib.metadata.version(name) for name in COMPUTING}
        return cls(versions, contents_of(folder), digests, list(plugins))

    def message(self) -> dict[str, Any]:
        """As it goes to others."""
        return asdict(self)

    def difference(self, rank: int, other: Mapping[str, Any]) -> str | None:
        """Why ``rank``, who says this of itself, cannot work with this process, which is rank 0; None if it can."""
        return next(self._differences(rank, other), None)

    def _differences(self, rank: int, other: Mapping[str, Any]) -> Iterator[str]:
        if other["versions"] != self.versions:
            yield f"Rank {rank} has {_versions(other['versions'])}, rank 0 {_versions(self.versions)}."
        if other["contents"] != self.contents:
            yield f"Rank {rank} has other files of the model than rank 0."
        if list(other["adapters"]) != list(self.adapters):
            theirs, own = _named("adapters", other["adapters"]), _named("adapters", self.adapters)
            yield f"Rank {rank} has {theirs}, rank 0 {own}."
        if changed := [name for name, digest in self.adapters.items() if other["adapters"].get(name) != digest]:
            yield f"Rank {rank} has other files of the adapter {changed[0]} than rank 0."
        if difference := difference_in_plugins(rank, other["plugins"], self.plugins):
            yield difference


def difference_in_plugins(rank: int, other: Sequence[str], own: Sequence[str]) -> str | None:
    """What tells the plugins that prepare ``rank``'s part of the model from rank 0's; None if they are the same."""
    if list(other) == list(own):
        return None
    return f"Rank {rank}'s model is prepared by {_named('plugins', other)}, rank 0's by {_named('plugins', own)}."


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _named(kind: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"the {kind} {', '.join(names)}" if names else f"no {kind}"
