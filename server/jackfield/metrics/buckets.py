"""Where histograms put their observations: few buckets, and the same error everywhere."""

FIFTHS = ("1", "1.6", "2.5", "4", "6.3")
"""Preferred numbers (ISO 3, series R5): each is about 1.6 times the one before, so that a quantile, which is anywhere
in its bucket, is off by no more than that."""


def decades(first: int, last: int) -> tuple[float, ...]:
    """Bounds from 10 to the power of ``first`` up to 10 to the power of ``last``, five a decade."""
    bounds = [float(f"{number}e{power}") for power in range(first, last) for number in FIFTHS]
    return (*bounds, float(f"1e{last}"))


TOKEN_SECONDS = decades(-4, 2)
"""Between tokens: less than a millisecond with a model of 135M on a GPU, seconds with one of 32B on a CPU; a stream
that has to make room for others may stand still for a minute."""

REQUEST_SECONDS = decades(-3, 4)
"""Parts of a request: a short prompt takes a 135M model milliseconds, and 32,000 tokens at 15 a second, which a CPU
without a fast BLAS reads, more than half an hour. 10,000 seconds are almost three hours."""

TOKENS = tuple(float(2**power) for power in range(19))
"""Of prompts and answers: 1 to 262,144, the longest context of today's Qwen models; as lengths double, work does."""

BATCH_SIZES = tuple(float(2**power) for power in range(11))
"""1 to 1,024, the most that ``max_batch`` can be."""
