"""The models that are served, by name."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from jackfield.engine.grammar import GrammarCompiler
from jackfield.engine.request import Adapter
from jackfield.engine.thread import Engine
from jackfield.errors import (
    ConfigurationError,
    ElsewhereError,
    InUseError,
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
)
from jackfield.models.embedding import EmbeddingSpec
from jackfield.models.fim import FillInTheMiddle, fill_in_the_middle
from jackfield.models.plan import MemoryPlan
from jackfield.models.profile import Profile, profile
from jackfield.models.tokenizer import Tokenizer
from jackfield.vision.reader import ImageReader


@dataclass
class ServedModel:
    """A model that answers requests."""

    id: str
    tokenizer: Tokenizer
    engine: Engine
    context_length: int
    vocabulary: int
    defaults: Mapping[str, Any]
    """What the model's authors advise in ``generation_config.json``."""
    images: ImageReader | None = None
    """Reads images, if the model does."""
    embedding: EmbeddingSpec = field(default_factory=lambda: EmbeddingSpec(obstacle="its engine makes none"))
    adapter: Adapter | None = None
    """What changes it, if it is not the model as it is."""
    adapted: Mapping[str, "ServedModel"] = field(default_factory=dict)
    """The same model with each of its adapters, by their names."""
    base: "ServedModel | None" = None
    """Of one with an adapter: the model as it is."""
    plan: MemoryPlan | None = None
    """What it takes of the memory, where that is known."""

    @cached_property
    def profile(self) -> Profile:
        """What it can do."""
        return profile(self.context_length, self.tokenizer, self.embedding, images=self.images is not None)

    def with_adapter(self, name: str, adapter: Adapter) -> "ServedModel":
        """The same model with an adapter of that name."""
        embedding = EmbeddingSpec(obstacle=f"it is an adapter; ask {self.id}")
        return replace(self, id=name, adapter=adapter, adapted={}, base=self, embedding=embedding)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles what constrains this model's answers."""
        if self.base is not None:
            return self.base.grammars
        return GrammarCompiler(self.tokenizer.source, self.vocabulary, sorted(self.tokenizer.end_tokens))

    @cached_property
    def fim(self) -> FillInTheMiddle | None:
        """How it fills in a middle, if its tokenizer has tokens for that."""
        return fill_in_the_middle(self.tokenizer)


State = Literal["unloaded", "loading", "ready", "recovering", "stopped", "failed", "remote"]


@dataclass(eq=False)
class Entry:
    """A model that can be asked for, whether it is in memory or not."""

    id: str
    aliases: tuple[str, ...] = ()
    """Other names of the model itself, of those that its own settings have."""
    adapters: tuple[str, ...] = ()
    """Names that stand for it with an adapter."""
    pinned: bool = False
    """It stays in memory."""
    unload_after: float | None = None
    """Seconds after which it leaves memory when nobody asks for it; None for as long as there is room."""
    served: ServedModel | None = None
    """None while it is not in memory."""
    failure: ModelLoadError | None = None
    """Why it could not be loaded, the last time that was tried."""
    loading: bool = False
    progress: float | None = None
    """How much of it has been downloaded, from 0 to 1, while it is."""
    loans: int = 0
    """Requests that have it; as long as there are any it stays in memory."""
    last_used: float = field(default_factory=time.monotonic)
    since: float = 0.0
    """When it came into memory, or last took turns with another one, on ``time.monotonic``'s clock."""
    leaving: asyncio.Event | None = None
    """Another model has waited long for its room: who asks for it now waits for this."""
    created: int = field(default_factory=lambda: int(time.time()))
    profile: Profile | None = None
    """What it can do, as soon as that is known."""
    remote: bool = False
    """It is not here at all: other servers answer for it."""

    @property
    def state(self) -> State:
        """How it stands."""
        if self.served is not None:
            return self.served.engine.state
        if self.loading:
            return "loading"
        if self.remote:
            return "remote"
        return "failed" if self.failure else "unloaded"


@dataclass
class Loan:
    """A model in use: it stays in memory until the loan ends."""

    model: ServedModel
    _entry: Entry
    _shelf: "Shelf"
    _ended: bool = False

    def end(self) -> None:
        """The request has been answered. Once is enough, more often is harmless."""
        if not self._ended:
            self._ended = True
            self._entry.loans -= 1
            self._entry.last_used = time.monotonic()
            self._shelf.returned(self._entry)


class Shelf(Protocol):
    """Brings models into memory, and out again."""

    async def load(self, entry: Entry) -> ServedModel:
        """The model, in memory.

        Raises:
            ModelLoadError: it cannot be loaded.
            UnavailableError: there is no room for it at the moment.
        """

    async def unload(self, entry: Entry) -> None:
        """Let the model leave memory.

        Raises:
            InUseError: it has to stay.
        """

    def returned(self, entry: Entry) -> None:
        """A request that had the model has been answered."""


class Fixed:
    """Holds models that are in memory already, and stay there."""

    async def load(self, entry: Entry) -> ServedModel:
        """The model."""
        assert entry.served is not None  # noqa: S101 - by definition
        return entry.served

    async def unload(self, entry: Entry) -> None:
        """It stays."""
        raise InUseError(entry.id, "it is not to be unloaded")

    def returned(self, entry: Entry) -> None:
        """Nothing changes."""


class Named(NamedTuple):
    """What a name means."""

    entry: Entry
    name: str
    """The model's own, or that of one of its adapters."""


class Registry:
    """All models, by their names and other names.

    Args:
        models: those that can be asked for; loaded ones may stand for themselves.
        aliases: other names, and whom they mean.
        shelf: who loads them.

    Raises:
        ConfigurationError: a name means two models, or none.
    """

    def __init__(
        self,
        models: Iterable[ServedModel | Entry],
        aliases: Mapping[str, str] | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        entries = [one if isinstance(one, Entry) else Entry(one.id, served=one, profile=one.profile) for one in models]
        self._entries = {entry.id: entry for entry in entries}
        self._shelf = shelf or Fixed()
        self._meant: dict[str, Named] = {}
        """What each name means; that of an alias is the model's or adapter's own."""
        for entry in entries:
            if entry.id in self._meant:
                raise ConfigurationError(
                    f"Two models would be called {entry.id!r}.",
                    suggestions=("Give one of them a table of another name, [models.NAME], with it as source.",),
                )
            self._meant[entry.id] = Named(entry, entry.id)
        for entry in entries:
            for adapter in entry.adapters:
                if adapter in self._entries:
                    raise ConfigurationError(
                        f"{adapter!r} would mean a model and an adapter of {entry.id}.",
                        suggestions=("Give the adapter another name.",),
                    )
                self._claim(adapter, Named(entry, adapter))
            for alias in entry.aliases:
                self._claim(alias, Named(entry, entry.id))
        for alias, name in (aliases or {}).items():
            self._claim(alias, self._find(alias, name))

    def _claim(self, name: str, meant: Named) -> None:
        if (other := self._meant.setdefault(name, meant)) != meant:
            own = (other.name, meant.name) if other.entry is meant.entry else (other.entry.id, meant.entry.id)
            raise ConfigurationError(
                f"{name!r} would mean two models, {own[0]} and {own[1]}.",
                suggestions=("Use an alias once, and for no model that is served under that name.",),
            )

    def _find(self, alias: str, name: str) -> Named:
        if name not in self._meant:
            raise ConfigurationError(
                f"The alias {alias!r} stands for {name!r}, which is not served.",
                suggestions=(f"Let it stand for one of: {', '.join(self.names)}.",),
            )
        return self._meant[name]

    def __iter__(self) -> Iterator[ServedModel]:
        """Those in memory."""
        return (entry.served for entry in self._entries.values() if entry.served is not None)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models, in memory or not."""
        return tuple(self._entries.values())

    @property
    def names(self) -> tuple[str, ...]:
        """What answers can come from: models, and adapters after their models."""
        return tuple(name for entry in self.entries for name in (entry.id, *entry.adapters))

    def meant(self, name: str | None) -> Named:
        """The model of that name, or the adapter; without one, the only model there is.

        Raises:
            ModelNotFoundError: there is none of that name; those that are served go on undisturbed.
            InvalidRequestError: there are several, and none was named.
        """
        if name is not None:
            if name not in self._meant:
                raise ModelNotFoundError(name, self.names)
            return self._meant[name]
        if len(self._entries) == 1:
            return self._meant[next(iter(self._entries))]
        raise InvalidRequestError(
            "Missing required parameter: 'model'.",
            param="model",
            code="missing_required_parameter",
            suggestions=(f"Send one of: {', '.join(self._entries) or 'no model is served'}.",),
        )

    def entry(self, name: str | None) -> Entry:
        """The model of that name, as for `meant`; of an adapter, the one that it changes."""
        return self.meant(name).entry

    def is_name_of(self, name: str, entry: Entry) -> bool:
        """Whether a name, which need not be known here, means the model or one of its adapters."""
        return name in self._meant and self._meant[name].entry is entry

    def aliases(self, own: str) -> list[str]:
        """Other names of a model or an adapter."""
        return [name for name, meant in self._meant.items() if meant.name == own != name]

    async def unload(self, name: str) -> None:
        """Let the model of that name leave memory; it comes back when somebody asks for it.

        Raises:
            ModelNotFoundError: there is none of that name.
            InUseError: it has to stay.
        """
        await self._shelf.unload(self.entry(name))

    async def lend(self, name: str | None, *, waits: bool = True) -> Loan:
        """The model of that name, as for `meant`, loaded if need be; it stays until the loan ends.

        Args:
            name: the model's.
            waits: for its turn, if another model has waited long for its room; not where a request that is being
                answered would wait for itself.

        Raises:
            ModelNotFoundError: as for `meant`.
            InvalidRequestError: as for `meant`, or other servers answer for it.
            ModelLoadError: it cannot be loaded.
            UnavailableError: there is no room for it at the moment.
        """
        entry, own = self.meant(name)
        if entry.remote:
            raise ElsewhereError(entry.id)
        while waits and entry.leaving is not None:
            await entry.leaving.wait()
        entry.loans += 1
        try:
            model = entry.served or await self._shelf.load(entry)
        except BaseException:
            entry.loans -= 1
            raise
        return Loan(model.adapted.get(own, model), entry, self._shelf)
