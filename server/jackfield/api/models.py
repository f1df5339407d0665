"""``GET /v1/models``, ``GET /v1/models/{id}``, and ``POST /v1/models/load`` and ``/v1/models/unload``."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from jackfield.api import body
from jackfield.api.borrowing import borrow
from jackfield.models.registry import Entry
from jackfield.protocol.models import Model, ModelList, ModelReport, ModelRequest


async def list_models(request: Request) -> Response:
    """All models that can be asked for, in memory or not."""
    entries: tuple[Entry, ...] = request.app.state.registry.entries
    data = [_model(entry, name) for entry in entries for name in (entry.id, *entry.adapters)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    models = ModelList(data=data, first_id=first, last_id=last)
    return Response(models.to_json(), media_type="application/json")


async def get_model(request: Request) -> Response:
    """One of them, by its name or another one that it has."""
    return _answer(request, request.path_params["model"])


async def load_model(request: Request) -> Response:
    """Bring a model into memory before anybody asks for it; answers when it is there."""
    _, asked = await body.parsed(await body.whole(request), ModelRequest)
    await borrow(request, asked.model)
    return _answer(request, asked.model)


async def unload_model(request: Request) -> Response:
    """Let a model leave memory; answers when it has."""
    _, asked = await body.parsed(await body.whole(request), ModelRequest)
    await request.app.state.registry.unload(asked.model)
    return _answer(request, asked.model)


def _answer(request: Request, name: str) -> Response:
    """A model, by its name or another one that it has."""
    entry: Entry = request.app.state.registry.entry(name)
    model = _model(entry, name if name in entry.adapters else entry.id)
    return Response(model.to_json(), media_type="application/json")


def _model(entry: Entry, name: str) -> Model:
    """The model, or one of its adapters."""
    context_length = entry.profile.context_length if entry.profile else None
    return Model(
        id=name,
        parent=None if name == entry.id else entry.id,
        created=entry.created,
        owned_by="jackfield",
        context_length=context_length,
        max_model_len=context_length,
        display_name=name,
        created_at=datetime.fromtimestamp(entry.created, UTC).isoformat().replace("+00:00", "Z"),
        max_input_tokens=context_length,
        max_tokens=context_length,
        jackfield=_report(entry),
    )


def _report(entry: Entry) -> ModelReport:
    return ModelReport(
        state=entry.state,
        aliases=list(entry.aliases),
        pinned=entry.pinned,
        capabilities=list(entry.profile.capabilities) if entry.profile else None,
        weights_bytes=entry.served.plan.weights if entry.served and entry.served.plan else None,
        progress=entry.progress,
        failure=entry.failure.message if entry.failure else None,
    )
