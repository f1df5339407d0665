"""``GET /v1/plugins``."""

from starlette.requests import Request
from starlette.responses import Response

from jackfield.protocol.plugins import PluginList, PluginReport


async def list_plugins(request: Request) -> Response:
    """All plugins: what they are, how they are set, and how they do."""
    reports = [PluginReport.model_validate(report) for report in request.app.state.hooks.reports()]
    return Response(PluginList(data=reports).to_json(), media_type="application/json")
