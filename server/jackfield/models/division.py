"""Which part of each layer a process of a group has, for what is put onto layers after they have been divided.

mlx-lm divides a network in its own way: layers of several matrices in one (query, key, value) by segments, others by
repeating heads. Nothing in a divided layer tells its place in the whole one. So another network of the same kind, whose
weights nobody ever computes, is divided too, and its layers have the numbers of their outputs for biases.
"""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from jackfield.errors import ModelLoadError
from jackfield.models.adapter_experts import is_experts


class Division:
    """What has become of a network's layers.

    Args:
        model: the network; not changed.
        divide: leaves the network that it is given this process's part.
        group: those who have the other parts.
    """

    def __init__(self, model: nn.Module, divide: Callable[[nn.Module], object], group: mx.distributed.Group) -> None:
        self._group = group
        self.whole: Mapping[str, nn.Module] = dict(_like(model).named_modules())
        """The layers as they were, by their paths."""
        numbered = _like(model)
        for _, module in numbered.named_modules():
            if isinstance(module, nn.Linear):
                module.bias = mx.arange(module.weight.shape[0])
        divide(numbered)
        self._own: dict[str, Any] = dict(numbered.named_modules())

    def inputs(self, path: str) -> mx.array:
        """The numbers, int32, of those of a layer's inputs that are this process's.

        Raises:
            ModelLoadError: that is not known.
        """
        return self._even(path, *self._sizes(path, -2))

    def outputs(self, path: str) -> mx.array:
        """The same of its outputs."""
        whole, own = self._sizes(path, -1)
        if whole == own or is_experts(self._own[path]):
            return self._even(path, whole, own)
        numbers: mx.array = self._own[path].bias
        if numbers.shape != (own,) or numbers.dtype != mx.int32:
            raise _unknown(path)
        return numbers

    def summed(self, path: str, array: mx.array) -> mx.array:
        """The sum of what all processes have, if each of them has some of the layer's inputs; waits for them."""
        whole, own = self._sizes(path, -2)
        if whole == own:
            return array
        total: mx.array = mx.distributed.all_sum(array, group=self._group)
        # Two sums at the same time might meet other processes' in another order.
        mx.eval(total)
        return total

    def _sizes(self, path: str, dimension: int) -> tuple[int, int]:
        """How many inputs (-2) or outputs (-1) there are, and how many of them are this process's."""
        return shape_of(self.whole[path])[dimension], shape_of(self._own[path])[dimension]

    def _even(self, path: str, whole: int, own: int) -> mx.array:
        """Numbers of equal parts, one for each process, if it is not all of them."""
        if own != whole and own * self._group.size() != whole:
            raise _unknown(path)
        first = 0 if own == whole else own * self._group.rank()
        return mx.arange(first, first + own)


def _like(model: Any) -> nn.Module:
    """Another network of the same kind; its weights are random, and take no memory unless somebody asks for them."""
    other: nn.Module = type(model)(model.args)
    return other


def shape_of(module: Any) -> tuple[int, ...]:
    """Inputs and outputs of a layer, its experts before them if it has any."""
    *experts, outputs, inputs = module.weight.shape
    return *experts, inputs * 32 // module.bits if "scales" in module else inputs, outputs


def _unknown(path: str) -> ModelLoadError:
    return ModelLoadError(
        f"Adapters cannot change {path} in a group: it is divided in a way that they cannot follow.",
        suggestions=("Try --parallelism pipeline.", "Serve the adapter without a group."),
    )
