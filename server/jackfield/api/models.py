"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from starlette.requests import Request
from starlette.responses import Response

from jackfield.models.registry import ServedModel
from jackfield.protocol.models import Model, ModelList


async def list_models(request: Request) -> Response:
    """All models that are served."""
    models = ModelList(data=[_model(model) for model in request.app.state.registry])
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
    )
