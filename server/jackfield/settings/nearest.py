"""What somebody may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The one of ``known`` that looks most like ``name``, from 0 to 1, if one is ``alike``."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=alike)), None)
