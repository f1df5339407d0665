"""When two networks have computed the same."""

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike


def same_logits(found: mx.array | ArrayLike, expected: mx.array | ArrayLike) -> bool:
    """Whether they are equal but for the order of their sums: a BLAS chooses it by where arrays lie in memory, so that
    not even one network gives the same bits every time."""
    return np.allclose(np.array(found), np.array(expected), rtol=1e-4, atol=1e-4)
