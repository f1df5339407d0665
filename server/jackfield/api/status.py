"""``GET /health`` and ``GET /ready``."""

from starlette.requests import Request
from starlette.responses import Response

from jackfield.errors import ShuttingDownError, UnavailableError
from jackfield.protocol.status import Health, Ready


async def health(request: Request) -> Response:
    """The process is alive."""
    return Response(Health().to_json(), media_type="application/json")


async def ready(request: Request) -> Response:
    """A token can be generated.

    Raises:
        UnavailableError: not at the moment, or not any more.
    """
    if request.app.state.drain.draining:
        raise ShuttingDownError
    models = list(request.app.state.registry)
    if not all(model.engine.ready for model in models):
        states = ", ".join(model.engine.trouble or f"{model.id} is {model.engine.state}" for model in models)
        raise UnavailableError(
            f"Not ready: {states.rstrip('.')}.", suggestions=("Try again soon.", "Look at the server's log.")
        )
    return Response(Ready(models=[model.id for model in models]).to_json(), media_type="application/json")
