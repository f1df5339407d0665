"""The table of contents: routes, middleware, and what becomes of errors."""

import logging

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jackfield.api.chat import chat_completions
from jackfield.api.completions import completions
from jackfield.api.metrics import metrics
from jackfield.api.models import get_model, list_models
from jackfield.api.status import health, ready
from jackfield.errors import JackfieldError, MethodNotAllowedError, NotFoundError
from jackfield.metrics import EngineCollector
from jackfield.models.registry import Registry
from jackfield.settings import Settings

logger = logging.getLogger(__name__)

_API = [
    ("/chat/completions", chat_completions, "POST"),
    ("/completions", completions, "POST"),
    ("/models", list_models, "GET"),
    ("/models/{model:path}", get_model, "GET"),
]

routes = [
    *(Route(prefix + path, endpoint, methods=[method]) for prefix in ("/v1", "") for path, endpoint, method in _API),
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
]


def create_app(settings: Settings, registry: Registry) -> Starlette:
    """The application; the models in ``registry`` are loaded, and stay their owner's to stop."""
    app = Starlette(
        routes=routes,
        exception_handlers={
            JackfieldError: _expected,
            HTTPException: _http,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )
    app.state.settings = settings
    app.state.registry = registry
    app.state.collectors = CollectorRegistry()
    app.state.collectors.register(EngineCollector(registry))
    return app


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, JackfieldError)  # noqa: S101 - by registration
    return JSONResponse(error.envelope(), error.status, headers=error.headers)


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
        known = JackfieldError(str(error.detail))
    return JSONResponse(known.envelope(), error.status_code, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    # Nobody reads this; 499 is what nginx writes into its log for a client that hung up.
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.exception("Unexpected error at %s %s", request.method, request.url.path, exc_info=error)
    failure = JackfieldError(
        "The server failed unexpectedly.", code="internal_error", suggestions=("Look at the server's log.",)
    )
    return JSONResponse(failure.envelope(), 500)
