"""Whether an address is this machine's own, or others can reach it."""

import ipaddress
import logging
import socket

from jackfield.errors import ConfigurationError

logger = logging.getLogger(__name__)


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine reach a socket."""
    address: str = listener.getsockname()[0]
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def check_exposure(listener: socket.socket, *, asks: bool, open_to_network: bool) -> None:
    """Refuse to serve everybody by mistake.

    Raises:
        ConfigurationError: others reach the socket, nobody ``asks`` for keys, and nobody has said that this is meant.
    """
    if asks or is_loopback(listener):
        return
    address = listener.getsockname()[0]
    if not open_to_network:
        raise ConfigurationError(
            f"On {address}, everybody who reaches this machine could use the server: it asks for no key.",
            suggestions=(
                "Make a key: jackfield keys create NAME.",
                "Or put one into the environment: JACKFIELD_API_KEY.",
                "If everybody may use it: --open-to-network.",
            ),
        )
    logger.warning("Everybody who reaches %s can use this server: it asks for no key.", address)
