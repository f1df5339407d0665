"""From settings to the models that are served: which there are, and how each of them is fetched and loaded."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from jackfield.errors import ConfigurationError
from jackfield.events import EventBus
from jackfield.group.member import Member
from jackfield.hooks.engine_side import EngineHooks
from jackfield.models.description import local_folder
from jackfield.models.device import Device, detect_device, load_blas
from jackfield.models.folder import PATH_STARTS
from jackfield.models.hub_adapter import fetch_adapter
from jackfield.models.memory import host_memory
from jackfield.models.plan import MemoryPlan
from jackfield.models.profile import read_profile
from jackfield.models.progress import SILENT, Progress, Task
from jackfield.models.registry import Entry, Registry, ServedModel
from jackfield.models.service import Tell, model_id, open_model, plan_folder
from jackfield.models.shelf import OnDemand, load_error
from jackfield.models.sources import Source
from jackfield.settings import ModelSettings, Settings
from jackfield.settings.upstreams import stays_here

Fetch = Callable[[str, Progress], Path]
"""From a model's name to its folder."""


class Lineup:
    """All models that the settings name.

    Args:
        settings: the server's.
        fetch: finds a model's folder, and downloads it if need be.
        events: who hears of models that come, go or fail.
        tell: shows lines to whoever started the server.
        hooks: may prepare models.
        progress: shows downloads.
        member: this process's part in a group that serves one model together.
        plugged: where plugins get models from, of which nothing is known before they are fetched.

    Raises:
        ConfigurationError: a name means two models, or none; or a group is to serve what it cannot.
    """

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch,
        events: EventBus,
        *,
        tell: Tell,
        hooks: EngineHooks | None = None,
        progress: Progress = SILENT,
        member: Member | None = None,
        plugged: Sequence[Source] = (),
    ) -> None:
        self._settings = settings
        self._plugged = plugged
        self._member = member
        names = named(settings)
        if member is not None:
            sole_model(settings)
        self._own: Mapping[str, Settings] = {served_as(settings, name): settings.of_model(name) for name in names}
        self._fetch = fetch
        self._events = events
        self._tell = tell
        self._hooks = hooks
        self._progress = progress
        entries = [_entry(settings, name) for name in names]
        for entry in entries if member is not None else ():
            # The others end with it, and nobody would begin them anew.
            entry.pinned = True
        self._first = [entry for entry, name in zip(entries, names, strict=True) if _starts(settings, name)]
        self._shelf = OnDemand(
            entries,
            fetch=self._folder,
            plan=self._plan,
            open=self._open,
            total=self._total,
            events=events,
        )
        aliases = {alias: served_as(settings, one) if one in names else one for alias, one in settings.aliases.items()}
        self.registry = Registry(entries, aliases, self._shelf)

    async def start(self) -> None:
        """Load those that are to be there from the beginning.

        Raises:
            ModelLoadError: one of them cannot be served, or another one is not there at all.
        """
        for entry in self.registry.entries:
            if entry in self._first:
                await self._shelf.load(entry)
            elif not entry.remote:
                await asyncio.to_thread(self._look_at, entry)
        self._shelf.watch()

    async def stop(self) -> None:
        """The end."""
        await self._shelf.stop()

    def _look_at(self, entry: Entry) -> None:
        """See what is known of a model before it is loaded; a broken one does not keep the others from being served."""
        own = self._own[entry.id]
        try:
            if any(source.matches(own.model) for source in self._plugged):
                return
            folder = local_folder(own.model, cache=own.cache_dir)
            entry.profile = read_profile(folder, entry.id, own.context_length) if folder else None
        except Exception as error:  # files can be wrong in ways that nobody has foreseen
            entry.failure = load_error(entry, error)
            self._tell(f"{entry.id} cannot be served as it is: {entry.failure.message}")

    def _folder(self, entry: Entry) -> Path:
        own, progress = self._own[entry.id], _Watched(entry, self._progress)
        folder = self._fetch(own.model, progress)
        for adapter in own.adapters.values():
            fetch_adapter(adapter, progress)
        return folder

    def _plan(self, entry: Entry, folder: Path, total: int) -> MemoryPlan:
        return plan_folder(self._own[entry.id], folder, total)

    async def _open(self, entry: Entry, folder: Path, share: int | None) -> ServedModel:
        own = self._own[entry.id]
        return await open_model(
            own, folder, self._events, self._tell, self._hooks, name=entry.id, share=share, member=self._member
        )

    @cached_property
    def _device(self) -> Device:
        return detect_device(load_blas())

    def _total(self) -> int:
        held = mx.get_active_memory() + mx.get_cache_memory()
        total = host_memory().available + held if self._device.kind == "cpu" else self._device.memory_bytes
        return min(total, self._settings.memory_limit or total)


def sole_model(settings: Settings) -> str:
    """The name of the one model that a group of processes serves.

    Raises:
        ConfigurationError: there are more.
    """
    names = named(settings)
    if len(names) > 1:
        raise ConfigurationError(
            f"Several processes together serve one model, and {len(names)} are set.",
            suggestions=(f"Leave out all but {names[0]}.", "Serve others without mlx.launch."),
        )
    return names[0]


def named(settings: Settings) -> tuple[str, ...]:
    """The names of all models as the settings have them, the one that is loaded first first."""
    return tuple(dict.fromkeys((settings.model, *settings.models)))


def at_start(settings: Settings) -> list[str]:
    """Where those come from that are loaded when the server starts."""
    names = [name for name in named(settings) if _starts(settings, name)]
    return [settings.of_model(name).model for name in names]


def adapters_at_start(settings: Settings) -> list[str]:
    """Where their adapters come from."""
    names = [name for name in named(settings) if _starts(settings, name)]
    return [adapter for name in names for adapter in settings.of_model(name).adapters.values()]


def _starts(settings: Settings, name: str) -> bool:
    own = settings.models.get(name)
    if own is not None and not stays_here(own.route):
        return False
    return name == settings.model or (name in settings.models and settings.models[name].pinned)


def served_as(settings: Settings, name: str) -> str:
    """What clients call a model that the settings name: as its table is called, unless that is no more than a path."""
    own = settings.models.get(name)
    is_path = own == ModelSettings() and name.startswith(PATH_STARTS)
    return model_id(name) if own is None or is_path else name


def _entry(settings: Settings, name: str) -> Entry:
    own = settings.models.get(name, ModelSettings())
    return Entry(
        served_as(settings, name),
        aliases=own.aliases,
        adapters=tuple(settings.of_model(name).adapters),
        pinned=own.pinned,
        unload_after=own.unload_after or settings.unload_after,
        remote=not stays_here(own.route),
    )


def remote_entries(settings: Settings) -> list[Entry]:
    """The models that are not here at all."""
    return [entry for name in settings.models if (entry := _entry(settings, name)).remote]


class _Watched:
    """Shows progress where it is shown, and in what is told of the model."""

    def __init__(self, entry: Entry, shown: Progress) -> None:
        self._entry = entry
        self._shown = shown

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Show a job of ``total`` bytes (None: not known) until the context ends."""
        with self._shown.task(description, total) as task:
            yield _WatchedTask(self._entry, task, total)


class _WatchedTask:
    def __init__(self, entry: Entry, shown: Task, total: int | None) -> None:
        self._entry = entry
        self._shown = shown
        self._total = total
        self._done = 0

    def advance(self, amount: int) -> None:
        self._shown.advance(amount)
        self._done += amount
        if self._total:
            self._entry.progress = min(1.0, self._done / self._total)

    def expect(self, total: int) -> None:
        self._shown.expect(total)
        self._total = total
