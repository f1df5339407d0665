"""What the engine has done and is doing, in numbers: written on the engine thread, read by anyone."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Statistics:
    """Counts since the start, and how things stand. Readers may see one field a step older than another."""

    waiting: int = 0
    """Requests in the queue."""
    reading: int = 0
    """Requests whose prompts are being processed."""
    running: int = 0
    """Requests that are being answered."""
    prompt_tokens: int = 0
    """Prompt tokens of all requests that left the queue, cached or not."""
    cached_tokens: Counter[str] = field(default_factory=Counter)
    """Of these, the ones the prefix cache had, by tier: ``memory``, ``disk``."""
    generated_tokens: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """Steps, by how many requests got a token in them."""
    queried_tokens: int = 0
    """Prompt tokens that were looked for in the prefix cache."""
    misses: Counter[str] = field(default_factory=Counter)
    """Requests whose prompt was not cached as a whole, by MissReason."""
    hits: int = 0
    """Requests whose prompt was."""
    preemptions: int = 0
    """Times that a request had to make room for others."""
    restarts: int = 0
    """Times that the engine was started anew after a failure."""
    load_seconds: float = 0.0
    """How long the model took to load and to generate a first token, the last time."""
    kv_bytes: int = 0
    """Keys and values of the requests being processed and answered."""
    kv_pool_bytes: int = 0
    """The most that keys and values, of these requests and of the prefix cache in memory, may take together."""
    cache_bytes: dict[str, int] = field(default_factory=dict)
    """Size of the prefix cache, by tier."""
    evictions: dict[str, int] = field(default_factory=dict)
    """Blocks that had to leave the prefix cache, by tier."""
    device_bytes: int = 0
    """Bytes that MLX holds in all: weights, caches, and what a step needs."""
    pressure: str = "none"
    """How short memory is: ``none``, ``evicting``, ``slowing``, ``refusing``."""

    def report(self) -> dict[str, Any]:
        """By name, as they stand; nothing of it changes any more."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
