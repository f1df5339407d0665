"""``GET /metrics``, for Prometheus."""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from jackfield.hooks.calls import Hooks
from jackfield.hooks.plugin import Plugin


async def metrics(request: Request) -> Response:
    """How things stand, in the text format that every collector reads."""
    text = generate_latest(request.app.state.collectors)
    # Nobody knows how long theirs take.
    text += await asyncio.to_thread(_plugged, request.app.state.plugged_collectors, request.app.state.hooks)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def _plugged(registries: Sequence[tuple[Plugin, CollectorRegistry]], hooks: Hooks) -> bytes:
    """What plugins measure; those that fail at it are left out."""
    text = b""
    for plugin, registry in registries:
        try:
            text += generate_latest(registry)
        except Exception as error:
            hooks.failed(plugin, "register_metrics", error)
        else:
            plugin.count("register_metrics", 0.0)
    return text
