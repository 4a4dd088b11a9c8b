"""Cuts rows into micro-batches by token lengths and a token budget. Pure: no model, no clock, no state.

Called by the encoder. Rows are ordered from the longest to the shortest. Rows of similar length are then in one
micro-batch, which keeps the number of attention calls small, and a micro-batch that is too large for the memory fails
at the start of a block. The encoder cuts one micro-batch at a time, because the budget may change between two of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def order_rows(lengths: Ints) -> Ints:
    """Return row numbers from the longest to the shortest; rows of equal length keep their order."""
    return np.argsort(-np.asarray(lengths, np.int64), kind="stable")


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Return `counts[i]` numbers from `starts[i]`, one range after the other."""
    ends = np.cumsum(counts)
    numbers: Ints = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return numbers


def take(lengths: Ints, start: int, budget_tokens: int) -> int:
    """Return the end of the micro-batch that begins at `start`.

    Args:
        lengths: int64 [n], tokens of each row, longest first.
        start: First row of the micro-batch, `0 <= start < n`.
        budget_tokens: Largest sum of lengths.

    Returns:
        `stop > start`: a row longer than the budget makes a micro-batch of its own.
    """
    # Count each row as one token at least: the slice is then never longer than the budget.
    window = np.maximum(lengths[start : start + max(budget_tokens, 1)], 1)
    rows = int(np.searchsorted(np.cumsum(window), budget_tokens, side="right"))
    return start + max(rows, 1)
