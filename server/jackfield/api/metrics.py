"""``GET /metrics``, for Prometheus."""

import asyncio

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response


async def metrics(request: Request) -> Response:
    """How things stand, in the text format that every collector reads."""
    # Hundreds of series take milliseconds, and nobody knows how long plugins' own take.
    text = await asyncio.to_thread(_all, request.app.state)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


def _all(state: State) -> bytes:
    """What is measured here and by plugins; those that fail at it are left out."""
    text = generate_latest(state.metrics.collectors)
    for plugin, registry in state.plugged_collectors:
        try:
            text += generate_latest(registry)
        except Exception as error:
            state.hooks.failed(plugin, "register_metrics", error)
        else:
            plugin.count("register_metrics", 0.0)
    return text
