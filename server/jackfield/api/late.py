"""Streams that begin before there is anything to say: a model is being loaded, or a conversation prepared, for long."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from jackfield.api import sse
from jackfield.api.reply import Reply
from jackfield.drain import Drain
from jackfield.exchange import Exchange
from jackfield.protocol.asking import Asking

Asked = TypeVar("Asked", bound=Asking)
Prepared = asyncio.Task[Reply[Asked]]


async def wait(preparing: Prepared[Asked], seconds: float | None) -> None:
    """Give it so many seconds, or without a limit as many as it takes; whoever is cancelled here gives it up."""
    try:
        await asyncio.wait({preparing}, timeout=seconds)
    except asyncio.CancelledError:
        give_up(preparing)
        await asyncio.gather(preparing, return_exceptions=True)
        raise


async def stream(
    preparing: Prepared[Asked], exchange: Exchange, drain: Drain, kind: type[Reply[Asked]]
) -> AsyncGenerator[bytes, None]:
    """The events of an answer that is not prepared yet, with an error as the only one if it never is."""
    try:
        yield sse.HEARTBEAT
        try:
            async with drain.interrupting():
                prepared = await preparing
            prepared.answer.admit()
        except Exception as error:
            failure = sse.expected(error, exchange.info.id)
            exchange.failed(failure)
            for event in kind.refused(failure, exchange.info.id):
                yield event
            return
        async with aclosing(prepared.stream()) as events:
            async for event in events:
                yield event
    finally:
        give_up(preparing)
        exchange.cancelled(0)


def give_up(preparing: Prepared[Asked]) -> None:
    """Nobody waits for it; harmless once the answer has ended."""
    if not preparing.done():
        preparing.cancel()
    elif not preparing.cancelled() and preparing.exception() is None:
        preparing.result().answer.cancel()
