"""What the answer says of a compression: numbers and names, no text."""

from jackfield.hooks import JsonObject
from jackfield_compression.compressor import Fitted, Job


def report(fitted: Fitted, job: Job) -> JsonObject:
    """What was done by which strategy, and by how much."""
    found = fitted.compression
    if found is None:
        return {}
    strategies = {name: dict(counts) for name, counts in found.counts.items() if any(counts.values())}
    if found.summary is not None:
        strategies.setdefault("summary", {})["tokens"] = job.sizes.text(found.summary)
    return {
        "strategies": strategies,
        "tokens_before": job.tokens(),
        "tokens_after": fitted.tokens,
        "messages_before": len(job.messages),
        "messages_after": len(fitted.messages),
        "dropped": len(found.dropped),
        "shortened": len(found.replaced),
        "fresh": found.length == len(job.messages),
    }
