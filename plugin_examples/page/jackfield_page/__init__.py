"""A page: a small chat in the browser, served beside the API that it uses."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from jackfield.hooks import hookimpl


class Plugin:
    """Serves the files in ``static`` at ``/page/``."""

    @hookimpl
    def register_routes(self) -> Iterable[BaseRoute]:
        """One route for all files; without a path it is ``index.html``."""
        return [Mount("/page", StaticFiles(packages=[("jackfield_page", "static")], html=True))]

    @hookimpl
    def open_paths(self) -> Iterable[str]:
        """All of them, without a key: they hold nothing, and the page asks for one."""
        return ["/page/", "/page/page.css", "/page/page.js"]
