"""What has been set up here: the configuration, plugins, keys and the port."""

import errno
import socket
from collections.abc import Iterator

from jackfield.address import place
from jackfield.doctor.finding import Finding, careful, failure, ok, warning
from jackfield.doctor.keys import key_checks
from jackfield.hooks.calls import Hooks
from jackfield.settings import Configuration, Settings


def setup_checks(configuration: Configuration, hooks: Hooks) -> Iterator[Finding]:
    """The configuration, plugins, keys and the port."""
    yield _configuration(configuration)
    yield from _plugins(hooks)
    yield from careful("keys", lambda: key_checks(configuration.settings, hooks))
    yield _port(configuration.settings)


def _configuration(configuration: Configuration) -> Finding:
    file = f"the file {configuration.file}" if configuration.file else "no file"
    changed = ", ".join(sorted(configuration.origins)) or "nothing"
    return ok("configuration", f"It comes from {file}; set are: {changed}.")


def _plugins(hooks: Hooks) -> Iterator[Finding]:
    broken = [report for report in hooks.reports() if report["state"] != "active"]
    for report in broken:
        errors = "; ".join(map(str, report.get("errors") or ())) or report["state"]
        name = report["name"]
        yield failure("plugins", f"{name}: {errors}", f"Mend it, or leave it out: --disable-plugin {name}")
    active = [report["name"] for report in hooks.reports() if report["state"] == "active"]
    if active or not broken:
        yield ok("plugins", f"{', '.join(active) or 'none'}.")


def _port(settings: Settings) -> Finding:
    here = place(settings.host, settings.port)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            look = f"If that is Jackfield, look at it: jackfield doctor http://{here}"
            return warning("port", f"{here} is in use.", look, "Otherwise choose another one: --port.")
        return failure("port", f"{here} cannot be used: {error.strerror}.", "Set host and port to others.")
    return ok("port", f"{here} is free.")
