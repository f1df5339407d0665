"""Adapters (LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353): small changes to a model's layers, of which each row of a
batch may have another.

All adapters' low-rank matrices stand side by side, so a layer adds two thin products for the whole batch, whoever uses
which adapter; a mask lets each row see the columns of its own. Rows without an adapter get zeros added. As long as no
row has one, nothing is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx
from mlx import nn


@dataclass(slots=True)
class Choice:
    """Which adapter each row of the current pass has; all adapted layers share one."""

    rows: mx.array | None = None
    """[rows], numbers of adapters; None if no row has one."""
    mask: mx.array | None = None
    """[rows, 1, columns], ones and zeros: the columns that each row sees."""
    routed: tuple[mx.array, mx.array] | None = None
    """The mask of each token that experts are at work for, see `RoutedExperts`."""


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


class SummedLinear(nn.Module):
    """A layer of whose inputs each process of a group has some: what they make of them is added up, adapters' too.

    Args:
        part: from this process's inputs to all outputs.
        bias: [outputs], if there is one.
        group: those who have the other inputs.
    """

    def __init__(
        self, part: Callable[[mx.array], mx.array], bias: mx.array | None, group: mx.distributed.Group
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = part
        self.group = group
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """The layer's output, the same in all processes."""
        y: mx.array = mx.distributed.all_sum(self.part(x), group=self.group)
        return y + self.bias if "bias" in self else y


class RescaledLinear(nn.Module):
    """A linear layer with adapters of which some are DoRA: they say how long each row of the changed weights is.

    Args:
        adapted: the layer with the adapters as if they were LoRA.
        factors: [adapters + 1, outputs], what its outputs are multiplied by; ones for LoRA, and for none.
        shifts: [adapters + 1, outputs], what is added then, as the layer's bias is not to be multiplied.
        choice: which one each row has.
    """

    def __init__(self, adapted: AdaptedLinear, factors: mx.array, shifts: mx.array, choice: Choice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.adapted = adapted
        self.factors = factors
        self.shifts = shifts
        self._choice = (choice,)

    def __call__(self, x: mx.array) -> mx.array:
        """The layer's output, with each row's adapter applied."""
        y = self.adapted(x)
        rows = self._choice[0].rows
        return y if rows is None else y * self.factors[rows][:, None] + self.shifts[rows][:, None]


class RoutedExperts(nn.Module):
    """A layer of experts (mlx-lm's ``SwitchGLU`` or ``SwitchMLP``) that notes which row each token is of.

    It may sort tokens by their experts before the adapted layers inside see them, so both orders are noted.
    """

    def __init__(self, base: Callable[[mx.array, mx.array], mx.array], choice: Choice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self._choice = (choice,)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """What each token's experts, ``indices`` [..., k], make of it."""
        choice = self._choice[0]
        if choice.mask is not None:
            experts = indices.shape[-1]
            count = indices.size // experts
            mask = choice.mask[mx.arange(count) * choice.mask.shape[0] // count]
            # As mlx-lm's _gather_sort has them. Nobody computes this unless it is asked for.
            choice.routed = (
                mask.reshape(*indices.shape[:-1], 1, 1, -1),
                mask[mx.argsort(indices.flatten()) // experts],
            )
        return self.base(x, indices)


class AdaptedExperts(nn.Module):
    """A layer of many experts (mlx-lm's ``SwitchLinear``) with adapters, inside of `RoutedExperts`.

    Args:
        base: the layer.
        down: [experts, inputs, columns]; the ranks of all adapters side by side.
        up: [experts, columns, outputs], with each adapter's scale in it.
        choice: what each token sees of them.
    """

    def __init__(self, base: Callable[..., mx.array], down: mx.array, up: mx.array, choice: Choice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self.down = down
        self.up = up
        self._choice = (choice,)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """The output of the experts ``indices``, with each token's adapter applied."""
        y = self.base(x, indices, sorted_indices=sorted_indices)
        choice = self._choice[0]
        if choice.mask is None or choice.routed is None:
            return y
        apply = partial(mx.gather_mm, rhs_indices=indices, sorted_indices=sorted_indices)
        changes = apply(apply(x, self.down) * choice.routed[sorted_indices], self.up)
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
    _masks: mx.array = field(init=False)

    def __post_init__(self) -> None:
        # One row for each adapter, and the last one for none.
        total, rows, start = sum(self.ranks), [], 0
        for rank in self.ranks:
            rows.append([float(start <= column < start + rank) for column in range(total)])
            start += rank
        self._masks = mx.array([*rows, [0.0] * total], dtype=self.dtype)

    def chosen(self, adapters: Sequence[int | None]) -> mx.array | None:
        """What rows with these adapters have, [rows]; None if none of them has one."""
        if all(one is None for one in adapters):
            return None
        return mx.array([len(self.ranks) if one is None else one for one in adapters])

    @contextmanager
    def applied(self, chosen: mx.array | None) -> Iterator[None]:
        """Rows that the model is called with have what ``chosen`` says, until the context ends."""
        choice = self.choice
        choice.rows, choice.mask = chosen, None if chosen is None else self._masks[chosen][:, None]
        try:
            yield
        finally:
            choice.rows = choice.mask = choice.routed = None


NONE = Adapters((), Choice())
"""Of a model without any."""
