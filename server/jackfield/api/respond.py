"""What all endpoints that generate do alike: read a request, and send its answer whole or as a stream."""

from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jackfield.api import body, sse
from jackfield.api.reply import Reply
from jackfield.api.routing import ask_route
from jackfield.backends.route import Wants, estimated_tokens, needs
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.asking import Asking

Asked = TypeVar("Asked", bound=Asking)


async def respond(request: Request, asks: type[Asked], reply: type[Reply[Asked]]) -> Response:
    """Answer a request."""
    exchange = Exchange.of(request)
    try:
        async with request.app.state.drain.interrupting():
            whole = await body.whole(request)
            prepared = await body.unless_gone(request, _prepare(request, whole, asks, reply, exchange))
        prepared.answer.admit()
    except ClientDisconnect:
        exchange.cancelled(0)
        raise
    except Exception as error:
        exchange.failed(error)
        raise
    if prepared.asked.stream:
        return sse.respond(prepared.stream(), prepared.host.settings.heartbeat)
    completion = await body.unless_gone(request, prepared.collect())
    return Response(completion.to_json(), media_type="application/json")


async def _prepare(
    request: Request, whole: bytes, asks: type[Asked], reply: type[Reply[Asked]], exchange: Exchange
) -> Reply[Asked]:
    asked = await body.read(whole, asks, exchange)
    host: Host = request.app.state.host

    async def begin(model: ServedModel) -> Reply[Asked]:
        made = reply(asked, model, exchange, host)
        await (made.begin() if exchange.backend else made.prepare())
        return made

    def wants() -> Wants:
        needed = needs(asked.model_dump(mode="json", by_alias=True, exclude_unset=True))
        return Wants(estimated_tokens(whole), needed, exchange.deadline(asked.timeout))

    return await ask_route(request, asked.model or None, exchange, wants, begin)
