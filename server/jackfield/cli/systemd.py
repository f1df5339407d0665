"""What systemd is told, where it is what has started the server: see sd_notify(3)."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def notify(*lines: str) -> None:
    """Tell it something, such as ``READY=1``; without it, or where it does not listen, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An @ stands for the zero byte that addresses without a file begin with.
    address = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager:
            service_manager.connect(address)
            service_manager.sendall("\n".join(lines).encode())
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", lines[0], error)


def reloading(reload: Callable[[], None]) -> None:
    """Call ``reload``, and tell when that begins and ends."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    reload()
    notify("READY=1")


async def watchdog() -> None:
    """Show again and again that the event loop lives, as often as systemd wants to see it."""
    microseconds = int(os.environ.get("WATCHDOG_USEC") or 0)
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while microseconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(microseconds / 2e6)
