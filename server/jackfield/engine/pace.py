"""How much of a prompt is processed between two steps of those who are being answered."""

from dataclasses import dataclass

LARGEST_SLICE, SMALLEST_SLICE = 2048, 16
"""Tokens. Fewer than the smallest take as long as these: weights have to be read once anyway."""

SCORED_SLICE = 128
"""The most prompt tokens that are scored in one go: their logits are needed, each as long as the vocabulary."""

QUICK = 0.3
"""Weight of the newest measurement in a running mean."""


@dataclass(slots=True)
class PrefillPace:
    """Sizes slices of prompts by a latency target, from measured rates.

    While others are being answered, a slice takes no longer than ``slowdown`` allows: at 2, a step together with a
    slice takes twice as long as the step alone. Otherwise slices are long, which uses the device best, but not so
    long that nobody could join or leave.
    """

    slowdown: float = 2.0
    alone: float = 1.0
    """Seconds for a slice when there is nobody else."""
    in_line: float = 0.25
    """Seconds for a slice when other prompts are to be processed, but nobody is being answered."""
    smallest: int = SMALLEST_SLICE
    smallest_shared: int = 4
    """The same for a slice that shares its pass through the model with a step, which reads them for both."""
    largest: int = LARGEST_SLICE
    rate: float = 256.0
    """Prompt tokens a second in long slices."""
    slow_rate: float = 256.0
    """Prompt tokens a second in the short slices between steps."""
    step: float = 0.05
    """Seconds of a step without a slice."""

    def slice(self, answering: int, reading: int, *, shared: bool = False) -> int:
        """Tokens to process next.

        Args:
            answering: how many are being answered.
            reading: how many prompts are being processed.
            shared: whether the slice shares its pass through the model with a step.
        """
        if answering:
            ideal = self.slow_rate * (self.slowdown - 1) * self.step
        else:
            ideal = self.rate * (self.alone if reading == 1 else self.in_line)
        smallest = min(self.smallest, self.smallest_shared) if shared else self.smallest
        return _round(max(smallest, min(self.largest, int(ideal))))

    def sliced(self, tokens: int, seconds: float, answering: int) -> None:
        """Learn from a slice that has been processed; very short ones say little about the rate."""
        if tokens < self.smallest_shared:
            return
        rate = tokens / max(seconds, 1e-6)
        if answering:
            self.slow_rate += QUICK * (rate - self.slow_rate)
        else:
            self.rate += QUICK * (rate - self.rate)
            # A first guess for the short ones, which are never faster than this.
            self.slow_rate = min(self.slow_rate, self.rate)

    def shared(self, tokens: int, seconds: float) -> None:
        """Learn from a slice that took ``seconds`` together with a step: what is beyond the step is its own."""
        self.sliced(tokens, max(seconds - self.step, 0.1 * seconds), 1)

    def stepped(self, seconds: float) -> None:
        """Learn how long a step takes on its own."""
        self.step += QUICK * (seconds - self.step)


def _round(tokens: int) -> int:
    # Few different sizes, since a GPU prepares for every new shape: four to each power of two.
    unit = max(4, 1 << max(tokens.bit_length() - 3, 0))
    return max(tokens // unit * unit, min(tokens, 4))
