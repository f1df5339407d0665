"""The table of contents: routes, middleware, and what becomes of errors."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route, WebSocketRoute

from jackfield.api.anthropic.messages import count_tokens, messages
from jackfield.api.arrival import Arrival
from jackfield.api.borrowing import Borrowing
from jackfield.api.chat import chat_completions
from jackfield.api.completions import completions
from jackfield.api.draining import Draining
from jackfield.api.embeddings import embeddings
from jackfield.api.fim import fim_completions
from jackfield.api.guard import Guard, SafeHeaders
from jackfield.api.infill import infill
from jackfield.api.measured import Measured
from jackfield.api.metrics import metrics
from jackfield.api.models import get_model, list_models, load_model, unload_model
from jackfield.api.named import Named
from jackfield.api.plugins import list_plugins
from jackfield.api.refusal import refusal
from jackfield.api.responses.create import create_response
from jackfield.api.responses.stored import cancel_response, input_items, stored_response
from jackfield.api.status import health, ready
from jackfield.api.tokens import apply_template, detokenize, tokenize, tokenizer_info
from jackfield.api.unforeseen import Unforeseen
from jackfield.backends.collector import RouteCollector, UpstreamCollector
from jackfield.errors import ConfigurationError, JackfieldError, MethodNotAllowedError, NotFoundError
from jackfield.events import EventBus
from jackfield.exchange import Exchange
from jackfield.hooks.calls import Hooks
from jackfield.hooks.discovery import given
from jackfield.hooks.middleware import Isolated
from jackfield.hooks.plugin import Plugin
from jackfield.host import Host
from jackfield.metrics import Metrics
from jackfield.models.registry import Registry
from jackfield.security.keyring import Keyring
from jackfield.settings import Settings

_API = [
    ("/chat/completions", chat_completions, "POST"),
    ("/completions", completions, "POST"),
    ("/infill", infill, "POST"),
    ("/fim/completions", fim_completions, "POST"),
    ("/responses", create_response, "POST"),
    ("/responses/{response_id:response}", stored_response, "GET DELETE"),
    ("/responses/{response_id:response}/cancel", cancel_response, "POST"),
    ("/responses/{response_id:response}/input_items", input_items, "GET"),
    ("/messages", messages, "POST"),
    ("/messages/count_tokens", count_tokens, "POST"),
    ("/embeddings", embeddings, "POST"),
    ("/tokenize", tokenize, "POST"),
    ("/detokenize", detokenize, "POST"),
    ("/apply-template", apply_template, "POST"),
    ("/tokenizer_info", tokenizer_info, "GET"),
    ("/models", list_models, "GET"),
    ("/models/load", load_model, "POST"),
    ("/models/unload", unload_model, "POST"),
    ("/models/{model:path}", get_model, "GET"),
    ("/plugins", list_plugins, "GET"),
]

routes = [
    *(Route(prefix + path, endpoint, methods=m.split()) for prefix in ("/v1", "") for path, endpoint, m in _API),
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
]

_LIMITS = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining") for of in ("requests", "tokens")]
_EXPOSED = ["X-Request-ID", "request-id", "Retry-After", "x-should-retry", *_LIMITS]
"""Headers that pages of the named sites may read: all that say something about a request."""


def create_app(
    settings: Settings,
    registry: Registry,
    hooks: Hooks | None = None,
    events: EventBus | None = None,
    keys: Keyring | None = None,
) -> Starlette:
    """The application; the models in ``registry`` are loaded, and stay their owner's to stop. No ``keys``: none needed.

    Its lifespan is the plugins': they start and end with it.

    Raises:
        ConfigurationError: plugins want to serve what is served already.
    """
    hooks = hooks or given((), settings)
    keys = keys or Keyring()
    measured = Metrics(registry, hooks)
    host = Host(settings, registry, hooks, events or EventBus(), measured.requests)
    plugged = _plugged_routes(host)
    served = [*routes, *(route for _, route in plugged)]
    app = Starlette(
        routes=served,
        middleware=[
            Middleware(SafeHeaders),
            Middleware(Named),
            *_cors(settings),
            Middleware(Measured, metrics=measured.of_routes(served)),
            Middleware(Unforeseen),
            Middleware(Arrival, hooks=hooks, keys=keys, open_paths=_open_paths(host, plugged)),
            Middleware(Guard, hosts=settings.allowed_hosts, origins=settings.cors_origins),
            Middleware(Draining, drain=host.drain),
            Middleware(Borrowing),
            *_plugged_middleware(host),
        ],
        lifespan=_lifespan,
        exception_handlers={
            JackfieldError: _expected,
            HTTPException: _http,
            ClientDisconnect: _gone,
        },
    )
    app.state.settings = settings
    app.state.registry = registry
    app.state.hooks = hooks
    app.state.keys = keys
    app.state.events = host.events
    app.state.host = host
    app.state.drain = host.drain
    app.state.metrics = measured
    measured.collectors.register(UpstreamCollector(host.upstreams))
    measured.collectors.register(RouteCollector(host.attempts))
    app.state.plugged_collectors = hooks.register_metrics(measured.collectors)
    return app


def _cors(settings: Settings) -> list[Middleware]:
    """Leave for pages of the sites that are named."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    ]


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    await app.state.host.start()
    try:
        yield
    finally:
        await app.state.host.stop()


def _plugged_routes(host: Host) -> list[tuple[Plugin, BaseRoute]]:
    """What plugins serve, and who does: nothing that is served already, by Jackfield or by one of them."""
    found = host.hooks.routes(host.server)
    taken: dict[str, str] = {}
    for plugin, route in found:
        if clash := _clash(route):
            raise _taken(plugin, clash, "Jackfield itself")
        for served in _served(route):
            if served in taken:
                raise _taken(plugin, served, taken[served])
            taken[served] = f"plugin {plugin.name}"
    return found


def _open_paths(host: Host, plugged: Sequence[tuple[Plugin, BaseRoute]]) -> frozenset[str]:
    """What can be got without a key because the plugin that serves it says so."""
    found = host.hooks.open_paths(host.server)
    for plugin, path in found:
        if next((owner for owner, route in plugged if _matches(route, "GET", path)), None) is not plugin:
            raise ConfigurationError(
                f"Plugin {plugin.name} wants to open {path}, which it does not serve.",
                suggestions=(f"Leave it out: --disable-plugin {plugin.name}.",),
            )
    return frozenset(path for _, path in found)


def _taken(plugin: Plugin, served: str, by: str) -> ConfigurationError:
    return ConfigurationError(
        f"Plugin {plugin.name} wants to serve {served}, which {by} serves already.",
        suggestions=(f"Leave it out: --disable-plugin {plugin.name}.",),
    )


def _clash(plugged: BaseRoute) -> str | None:
    """What of Jackfield's own a plugin's route would take over, or never get because of it."""
    for route in routes:
        for method in sorted(route.methods or ()):
            if _matches(plugged, method, re.sub("{[^}]*}", "any", route.path)):
                return f"{method} {route.path}"
            for served in _served(plugged):
                own_method, _, path = served.rpartition(" ")
                if own_method in ("", method) and _matches(route, method, path):
                    return served
    return None


def _matches(route: BaseRoute, method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return route.matches(scope)[0] is Match.FULL


def _served(route: BaseRoute) -> list[str]:
    """What a route answers: ``GET /path``, each method for itself, or the path alone."""
    path = getattr(route, "path", "")
    if isinstance(route, WebSocketRoute):
        return [f"WebSocket {path}"]
    if isinstance(route, Mount):
        return [f"{path}/"]
    methods = getattr(route, "methods", None)
    return [f"{method} {path}" for method in sorted(methods)] if methods else [path]


def _plugged_middleware(host: Host) -> list[Middleware]:
    seconds = host.settings.hook_seconds
    return [
        Middleware(Isolated, plugin=plugin, middleware=middleware, hooks=host.hooks, seconds=seconds)
        for plugin, middleware in host.hooks.middleware(host.server)
    ]


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, JackfieldError)  # noqa: S101 - by registration
    return refusal(error, request)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - by registration
    if error.status_code == 405:
        known: JackfieldError = MethodNotAllowedError(
            f"{request.method} is not allowed at {request.url.path}.",
            suggestions=(f"Use {(error.headers or {}).get('Allow', 'another method')}.",),
        )
    elif error.status_code == 404:
        known = NotFoundError(f"There is nothing at {request.url.path}.", suggestions=("See openapi.yaml.",))
    else:
        known = JackfieldError(str(error.detail), suggestions=("See openapi.yaml for what can be asked, and how.",))
    Exchange.of(request).failed(known)
    return refusal(known, request, status=error.status_code, headers=error.headers or {})


async def _gone(request: Request, error: Exception) -> Response:
    # Nobody reads this; 499 is what nginx writes into its log for a client that hung up.
    return Response(status_code=499)
