"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from jackfield.models.registry import ServedModel
from jackfield.protocol.models import Model, ModelList


async def list_models(request: Request) -> Response:
    """All models that are served."""
    data = [_model(model) for model in request.app.state.registry]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    models = ModelList(data=data, first_id=first, last_id=last)
    return Response(models.to_json(), media_type="application/json")


async def get_model(request: Request) -> Response:
    """One of them."""
    model = request.app.state.registry.get(request.path_params["model"])
    return Response(_model(model).to_json(), media_type="application/json")


def _model(model: ServedModel) -> Model:
    return Model(
        id=model.id,
        created=model.created,
        owned_by="jackfield",
        context_length=model.context_length,
        max_model_len=model.context_length,
        display_name=model.id,
        created_at=datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z"),
        max_input_tokens=model.context_length,
        max_tokens=model.context_length,
    )
