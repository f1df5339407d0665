"""``GET /metrics``, for Prometheus."""

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response


async def metrics(request: Request) -> Response:
    """How things stand, in the text format that every collector reads."""
    text = generate_latest(request.app.state.collectors)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
