"""Addresses as they stand in URLs."""


def place(host: str, port: int) -> str:
    """Host and port; those of IPv6 have colons of their own, so they stand in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
