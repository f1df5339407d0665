"""The page and its files, which hold nothing of the server: whoever has no key may have them, too."""

from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

Endpoint = Callable[[Request], Awaitable[Response]]

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # No text ever becomes HTML.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # Asked for anew each time, so that a page never meets the scripts of another version.
    "Cache-Control": "no-cache",
}


def routes() -> Iterator[BaseRoute]:
    """The page at ``/dashboard/``, its files below, and ``/dashboard`` on the way to it."""
    yield Route("/dashboard", _to_the_page)
    for path, name in _served().items():
        yield Route(path, _file(name))


def open_paths() -> list[str]:
    """All of them."""
    return ["/dashboard", *_served()]


def _served() -> dict[str, str]:
    names = [file.name for file in files(__package__).joinpath("static").iterdir()]
    return {f"/dashboard/{'' if name == 'index.html' else name}": name for name in sorted(names)}


async def _to_the_page(request: Request) -> Response:
    # Relative, so that it holds behind a proxy with a prefix.
    return RedirectResponse("dashboard/", 308, HEADERS)


def _file(name: str) -> Endpoint:
    content = files(__package__).joinpath("static", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=TYPES[PurePath(name).suffix])

    return endpoint
