"""What a client may ask of a stream."""

from jackfield.protocol.base import RequestModel


class StreamOptions(RequestModel):
    """Options that are only allowed together with ``stream: true``."""

    include_usage: bool | None = None
    """Send one more chunk before ``[DONE]``, with the usage and no choices."""
    continuous_usage_stats: bool | None = None
    """Send the usage so far with every chunk (a habit of vLLM's clients)."""
    include_obfuscation: bool | None = None
