"""Sizes of matrix products, rounded up to few.

How many crops are distinct, or how many tokens episodes have, changes from call to call, and for each size of a bfloat16
product oneDNN makes a kernel of its own and keeps it, a thousand of them: as much memory as all else of a learner. That costs
more than some rows that nobody reads.
"""


def few_sizes(count: int) -> int:
    """The least of few sizes that holds `count`: multiples of 8 up to 128, beyond it eight sizes to each doubling."""
    step = max(8, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step
