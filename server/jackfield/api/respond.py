"""What all endpoints that generate do alike: read a request, and send its answer whole or as a stream."""

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jackfield.api import body, late, sse
from jackfield.api.reply import Reply
from jackfield.api.routing import ask_route
from jackfield.backends.route import Wants, estimated_tokens
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.asking import Asking

Asked = TypeVar("Asked", bound=Asking)


async def respond(request: Request, asks: type[Asked], reply: type[Reply[Asked]]) -> Response:
    """Answer a request."""
    exchange, drain = Exchange.of(request), request.app.state.drain
    heartbeat: float = request.app.state.settings.heartbeat
    try:
        async with drain.interrupting():
            whole = await body.whole(request)
            asked = await body.unless_gone(request, body.read(whole, asks, exchange))
            preparing = asyncio.create_task(_prepare(request, whole, asked, reply, exchange))
            await body.unless_gone(request, late.wait(preparing, heartbeat if asked.stream else None))
        if not preparing.done():
            # The client hears that it is being seen to; what goes wrong now is told in the stream.
            return sse.respond(late.stream(preparing, exchange, drain, reply), heartbeat)
        prepared = preparing.result()
        prepared.answer.admit()
    except ClientDisconnect:
        exchange.cancelled(0)
        raise
    except Exception as error:
        exchange.failed(error)
        raise
    if prepared.asked.stream:
        return sse.respond(prepared.stream(), heartbeat)
    completion = await body.unless_gone(request, prepared.collect())
    return Response(completion.to_json(), media_type="application/json")


async def _prepare(
    request: Request, whole: bytes, asked: Asked, reply: type[Reply[Asked]], exchange: Exchange
) -> Reply[Asked]:
    host: Host = request.app.state.host

    async def begin(model: ServedModel) -> Reply[Asked]:
        made = reply(asked, model, exchange, host)
        await (made.begin() if exchange.backend else made.prepare())
        return made

    async def wants() -> Wants:
        needed = await reply.needs(asked, exchange, host)
        return Wants(estimated_tokens(whole), needed, exchange.deadline(asked.timeout))

    return await ask_route(request, asked.model or None, exchange, wants, begin)
