"""Adapters (LoRA, arXiv:2106.09685): small changes to a model's layers, of which each row of a batch may have another.

All adapters' low-rank matrices stand side by side, so a layer adds two thin products for the whole batch, whoever uses
which adapter; a mask lets each row see the columns of its own. Rows without an adapter get zeros added. As long as no
row has one, nothing is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx
from mlx import nn


@dataclass(slots=True)
class Choice:
    """Which columns each row of the current pass sees; all adapted layers share one."""

    mask: mx.array | None = None
    """[rows, 1, columns], ones and zeros; None if no row has an adapter."""


class AdaptedLinear(nn.Module):
    """A linear layer with adapters.

    Args:
        base: the layer, from [rows, count, inputs] to [rows, count, outputs].
        down: [inputs, columns]; the ranks of all adapters side by side.
        up: [columns, outputs], with each adapter's scale in it.
        choice: what each row sees of them.
    """

    def __init__(self, base: Callable[[mx.array], mx.array], down: mx.array, up: mx.array, choice: Choice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self.down = down
        self.up = up
        # A tuple, since a module takes what it finds in its attributes for parameters or sub-modules.
        self._choice = (choice,)

    def __call__(self, x: mx.array) -> mx.array:
        """The layer's output, with each row's adapter applied."""
        y = self.base(x)
        mask = self._choice[0].mask
        if mask is None:
            return y
        changes: mx.array = ((x @ self.down) * mask) @ self.up
        return y + changes.astype(y.dtype)


@dataclass
class Adapters:
    """A model's adapters, in the order of their columns.

    Args:
        ranks: columns of each.
        choice: what the model's layers look at.
        dtype: of the activations.
    """

    ranks: Sequence[int]
    choice: Choice
    dtype: mx.Dtype = mx.float32
    _rows: mx.array = field(init=False)

    def __post_init__(self) -> None:
        # One row of the mask for each adapter, and the last one, which is also number -1, for none.
        total, rows, start = sum(self.ranks), [], 0
        for rank in self.ranks:
            rows.append([float(start <= column < start + rank) for column in range(total)])
            start += rank
        self._rows = mx.array([*rows, [0.0] * total], dtype=self.dtype)

    def mask(self, chosen: Sequence[int | None]) -> mx.array | None:
        """What rows with these adapters see, [rows, columns]; None if none of them has one."""
        if all(one is None for one in chosen):
            return None
        return self._rows[mx.array([len(self.ranks) if one is None else one for one in chosen])]

    @contextmanager
    def applied(self, mask: mx.array | None) -> Iterator[None]:
        """Rows that the model is called with see what ``mask`` [rows, columns] says, until the context ends."""
        self.choice.mask = None if mask is None else mask[:, None]
        try:
            yield
        finally:
            self.choice.mask = None


NONE = Adapters((), Choice())
"""Of a model without any."""
