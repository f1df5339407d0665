"""Who else could answer what one model cannot answer now: names for the suggestions of errors."""

from collections.abc import Callable, Iterator, Mapping

from jackfield.backends.upstream import Upstream
from jackfield.errors import (
    ContextLengthExceededError,
    JackfieldError,
    LoopError,
    RateLimitError,
    ShuttingDownError,
)
from jackfield.hooks.data import RequestInfo
from jackfield.models.lineup import named, served_as
from jackfield.models.profile import Capability
from jackfield.models.registry import Entry, Registry
from jackfield.settings import Settings
from jackfield.settings.describe import literal, table
from jackfield.settings.upstreams import OWN, Route

MOST = 2
"""Names in one error."""

_NEEDED: Mapping[str, Capability] = {
    "/embeddings": "embeddings",
    "/completions": "completions",
    "/infill": "fill_in_the_middle",
    "/fim/completions": "fill_in_the_middle",
}
"""What a model must be able to do; chat, where nothing is said."""

_ELSEWHERE = ("busy", "memory", "engine", "upstream")
"""Categories of errors that are one model's own."""


class Alternatives:
    """Looks for them when an error is about to be told.

    Args:
        route: a model's, if it has one.
        registry: the models.
        upstreams: the other servers.
        settings: the server's.
    """

    def __init__(
        self,
        route: Callable[[Entry], Route],
        registry: Registry,
        upstreams: Mapping[str, Upstream],
        settings: Settings,
    ) -> None:
        self._route_of = route
        self._registry = registry
        self._upstreams = upstreams
        self._settings = settings

    def suggest(self, error: JackfieldError, request: RequestInfo) -> tuple[str, ...]:
        """What else can be done than what the error says itself."""
        others = [entry for entry in self._registry.entries if not self._means(entry, request.model)]
        if isinstance(error, ContextLengthExceededError):
            return tuple(self._longer(others, error.prompt_tokens, request))[:MOST]
        own = isinstance(error, RateLimitError | ShuttingDownError | LoopError)
        if own or error.category not in _ELSEWHERE or error.status < 429:
            return ()
        return (*tuple(self._free(others, request))[:MOST], *self._longer_route(request.model, error))

    def _means(self, entry: Entry, name: str) -> bool:
        return not name or self._registry.is_name_of(name, entry)

    def _longer(self, others: list[Entry], tokens: int, request: RequestInfo) -> Iterator[str]:
        """The shortest first that is long enough, since it takes the least memory."""
        known = [(self._context(one), one.id) for one in others if self._is_able(one, request)]
        for context, name in sorted(known):
            if context > tokens:
                yield f"Ask {name!r}, which reads {context} tokens."

    def _context(self, entry: Entry) -> int:
        """As far as it is known; of a model elsewhere what its route says."""
        if entry.profile is not None:
            return entry.profile.context_length
        return max((step.context_length or 0 for step in self._route_of(entry)), default=0)

    def _free(self, others: list[Entry], request: RequestInfo) -> Iterator[str]:
        for one in others:
            if not self._is_able(one, request):
                continue
            if one.served is not None and one.state == "ready" and one.leaving is None:
                if not one.served.engine.statistics.waiting:
                    yield f"Ask {one.id!r}, which is in memory and has no queue."
            elif one.remote and (name := self._well(one)):
                yield f"Ask {one.id!r}, which {name} answers."

    def _well(self, entry: Entry) -> str | None:
        """The first on its route that has not failed of late."""
        names = (step.backend for step in self._route_of(entry))
        return next((name for name in names if name in self._upstreams and self._is_well(name)), None)

    def _is_well(self, upstream: str) -> bool:
        return self._upstreams[upstream].breaker.state == "closed"

    def _is_able(self, entry: Entry, request: RequestInfo) -> bool:
        needed = _NEEDED.get(request.endpoint, "chat")
        if entry.profile is None:
            return entry.remote and needed in ("chat", "completions")
        return needed in entry.profile.capabilities

    def _longer_route(self, model: str, error: JackfieldError) -> Iterator[str]:
        """For whoever runs the server: there are upstreams that this model's requests never go to."""
        entry = next((one for one in self._registry.entries if self._means(one, model)), None)
        if entry is None or error.category == "upstream" or any(s.backend != OWN for s in self._route_of(entry)):
            return
        name = next((one for one in named(self._settings) if served_as(self._settings, one) == entry.id), entry.id)
        if self._settings.adapters and name not in self._settings.models:
            # Once a model has a table, its adapters have to be in there too.
            return
        if upstream := next(filter(self._is_well, self._upstreams), None):
            yield f"Let {upstream} answer when this model cannot: {_routed(entry.id, name, upstream)}."


def _routed(called: str, name: str, upstream: str) -> str:
    """What a file says to route a model by way of an upstream, which clients call so, and the settings so."""
    if called == name:
        return f"route = {literal([OWN, upstream])} in {table('models', name)}"
    # A table's name is what a model is called, by clients and upstreams too.
    way = f"{{ backend = {literal(upstream)}, model = {literal(called)} }}"
    return f"aliases = {literal([called])} and route = [{literal(OWN)}, {way}] in {table('models', name)}"
