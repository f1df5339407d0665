"""Apprise, which knows how to talk to more than a hundred services."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apprise import Apprise


def open_url(url: str, timeout: float = 15) -> "Apprise | None":
    """Somebody who can notify the service at an Apprise URL, or None if there is no such service.

    Args:
        url: such as ``ntfy://ntfy.sh/my-topic``.
        timeout: seconds that it may take.
    """
    # Loading all services takes a third of a second, and one of them imports a deprecated module of Python 3.11.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import apprise  # noqa: PLC0415

        asset = apprise.AppriseAsset(
            app_id="Jackfield",
            app_desc="Jackfield",
            http_redirects=False,
            allow_templates=False,
            service_timeout=timeout,
        )
        service = apprise.Apprise(asset=asset)
        return service if service.add(url) else None


def understands(url: str) -> bool:
    """Whether Apprise knows such a service, and the URL has what it needs."""
    return open_url(url) is not None
