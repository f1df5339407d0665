"""What all endpoints that generate do alike: read a request, and send its answer whole or as a stream."""

from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jackfield.api import body, sse
from jackfield.api.borrowing import borrow
from jackfield.api.reply import Reply
from jackfield.api.routing import Routing
from jackfield.exchange import Exchange
from jackfield.host import Host
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
    entry = host.registry.entry(asked.model or None)
    # An adapter is nobody else's.
    if (route := host.route(entry)) and asked.model not in entry.adapters:
        return await Routing(request, entry, whole, exchange, asked).first(
            route, lambda model: reply(asked, model, exchange, host)
        )
    prepared = reply(asked, await borrow(request, asked.model or None), exchange, host)
    await prepared.prepare()
    return prepared
