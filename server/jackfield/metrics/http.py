"""What HTTP requests were answered with, those too that no model had to do with."""

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Stands for all paths that nothing is served at, and all other methods."""


class HttpMetrics:
    """Owns the counter of HTTP answers.

    Args:
        collectors: where it is registered.
        routes: what is served; their templates are what paths are counted by, with and without ``/v1`` alike.
    """

    def __init__(self, collectors: CollectorRegistry, routes: Iterable[BaseRoute]) -> None:
        self._routes = tuple(routes)
        self._plain = {path: _template(path) for route in self._routes if "{" not in (path := _path(route))}
        self._answers = Counter(
            "jackfield_http_requests",
            "HTTP requests that were answered.",
            ["endpoint", "method", "status"],
            registry=collectors,
        )

    def answered(self, scope: Scope, status: int) -> None:
        """A request was answered."""
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._answers.labels(self._endpoint(scope), method, str(status)).inc()

    def _endpoint(self, scope: Scope) -> str:
        path = scope["path"]
        return self._plain.get(path) or next(
            (_template(_path(one)) for one in self._routes if _serves(one, scope)), OTHER
        )


def _serves(route: BaseRoute, scope: Scope) -> bool:
    """Whether a path is a route's, whatever the method."""
    return route.matches(scope)[0] is not Match.NONE


def _path(route: BaseRoute) -> str:
    return getattr(route, "path", "")


def _template(path: str) -> str:
    """``/v1/models/{model:path}`` as ``/models/{model}``."""
    return re.sub(r":\w+}", "}", path.removeprefix("/v1")) or "/"
