"""Token lengths and a budget in, micro-batches out. Pure: no model, no clock, no state.

Called by the encoder. Rows are taken longest first: rows of like length stand together, so that padding (or the
number of attention calls) is small, and a batch that is too large for the memory shows at the start of a block.
The encoder cuts one micro-batch at a time, because the budget may move between two of them; `plan` is the same
for a budget that stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# What a micro-batch costs: the sum of its lengths where rows are packed, else rows times the longest.
Cost = Literal["tokens", "padded"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Micro-batches over some rows.

    Attributes:
        micro_batches: Row numbers of each; together they are every row once.
        inverse: int64 [n]; `concatenated_results[inverse]` is in the order of the rows.
    """

    micro_batches: tuple[Ints, ...]
    inverse: Ints


def order_rows(lengths: Ints) -> Ints:
    """Row numbers from the longest to the shortest; equal ones keep their order."""
    return np.argsort(-np.asarray(lengths, np.int64), kind="stable")


def take(lengths: Ints, start: int, budget_tokens: int, *, cost: Cost = "tokens") -> int:
    """Where the micro-batch that begins at `start` ends.

    Args:
        lengths: int64 [n], tokens of each row, longest first.
        start: First row of the micro-batch, `0 <= start < n`.
        budget_tokens: What it may cost.
        cost: How a micro-batch's cost is counted.

    Returns:
        `stop > start`: a row that is over the budget on its own still goes, alone.
    """
    if cost == "padded":
        rows = budget_tokens // max(int(lengths[start]), 1)
        return min(start + max(rows, 1), len(lengths))
    # No more rows than tokens can fit; at least one token is counted for a row, so that the slice is bounded.
    window = np.maximum(lengths[start : start + max(budget_tokens, 1)], 1)
    rows = int(np.searchsorted(np.cumsum(window), budget_tokens, side="right"))
    return start + max(rows, 1)


def plan(lengths: Ints, budget_tokens: int, *, cost: Cost = "tokens") -> Plan:
    """All micro-batches of some rows for one budget.

    Args:
        lengths: int [n], tokens of each row in the caller's order.
        budget_tokens: What each may cost, 1 or more.
        cost: How cost is counted.

    Raises:
        ValueError: A budget below 1.
    """
    if budget_tokens < 1:
        raise ValueError(f"budget_tokens is {budget_tokens}, must be 1 or more.")
    order = order_rows(lengths)
    ordered = np.asarray(lengths, np.int64)[order]
    batches: list[Ints] = []
    start = 0
    while start < len(order):
        stop = take(ordered, start, budget_tokens, cost=cost)
        batches.append(order[start:stop])
        start = stop
    return Plan(tuple(batches), invert(order))


def invert(order: Ints) -> Ints:
    """The permutation that undoes `order`."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
