"""``GET /v1/models``, ``GET /v1/models/{id}``, and ``POST /v1/models/load`` and ``/v1/models/unload``."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from jackfield.api import body
from jackfield.api.borrowing import borrow
from jackfield.models.registry import Entry, Named, Registry
from jackfield.protocol.models import Model, ModelList, ModelReport, ModelRequest


async def list_models(request: Request) -> Response:
    """All models that can be asked for, in memory or not."""
    registry: Registry = request.app.state.registry
    data = [_model(registry, registry.meant(name)) for name in registry.names]
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
    registry: Registry = request.app.state.registry
    return Response(_model(registry, registry.meant(name)).to_json(), media_type="application/json")


def _model(registry: Registry, meant: Named) -> Model:
    """The model, or one of its adapters."""
    entry, name = meant
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
        jackfield=_report(entry, name, registry.aliases(name)),
    )


def _report(entry: Entry, name: str, aliases: list[str]) -> ModelReport:
    # See `ServedModel.with_adapter`.
    lacking = () if name == entry.id else ("embeddings",)
    return ModelReport(
        state=entry.state,
        aliases=aliases,
        pinned=entry.pinned,
        capabilities=[one for one in entry.profile.capabilities if one not in lacking] if entry.profile else None,
        weights_bytes=entry.served.plan.weights if entry.served and entry.served.plan else None,
        progress=entry.progress,
        failure=entry.failure.message if entry.failure else None,
    )
