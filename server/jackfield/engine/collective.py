"""What the processes that run one model together say to each other through MLX."""

from typing import cast

import mlx.core as mx


class Collective:
    """A group of MLX's in which all ranks call the same methods in the same order.

    Args:
        group: rank 0 leads it.
        sends: whether one rank can send to another one alone; see :attr:`jackfield.group.rank.Rank.sends`.
    """

    def __init__(self, group: mx.distributed.Group, *, sends: bool = True) -> None:
        self.group = group
        self.sends = sends
        self.rank: int = group.rank()
        self.size: int = group.size()

    def from_leader(self, array: mx.array) -> mx.array:
        """The leader's array, of numbers and of the shape and type that everybody's has; nothing is evaluated yet.

        So followers know what the leader knows although what they compute may be rounded otherwise.
        """
        own = array if self.rank == 0 else mx.zeros_like(array)
        shared: mx.array = mx.distributed.all_sum(own, group=self.group)
        return shared

    def least(self, number: int) -> int:
        """The least of everybody's numbers, each from 0 on; waits for everybody."""
        agreed = mx.distributed.all_min(mx.array(number, dtype=mx.int32), group=self.group)
        # When somebody dies meanwhile, what comes may be anything.
        return max(0, min(number, cast(int, agreed.item())))

    def text_from_leader(self, text: str = "") -> str:
        """What the leader says, who alone need give a ``text``; waits for everybody."""
        data = text.encode()
        size = cast(int, self.from_leader(mx.array(len(data), dtype=mx.int32)).item())
        padded = data.ljust(size, b"\0") if self.rank == 0 else bytes(size)
        shared = self.from_leader(mx.array(list(padded), dtype=mx.int32))
        return bytes(cast(list[int], shared.tolist())).decode()
