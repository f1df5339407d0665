"""The HTTP client that targets share the making of."""

import ssl
from pathlib import Path

import httpx2


def client(timeout: float, ca_file: Path | None, *, http2: bool = False) -> httpx2.AsyncClient:
    """A client that follows no redirects, since they would carry a signed message to somebody else.

    Args:
        timeout: seconds for a connection, and for an answer.
        ca_file: certificates to trust instead of the system's.
        http2: speak HTTP/2 and nothing else.
    """
    verify = ssl.create_default_context(cafile=ca_file) if ca_file else True
    return httpx2.AsyncClient(
        timeout=timeout, verify=verify, follow_redirects=False, http1=not http2, http2=http2, max_redirects=0
    )
