"""Micro-batches cover all rows, keep to the budget, and are as large as the budget allows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.batching.planner import Ints, order_rows, take

lengths_of = st.lists(st.integers(1, 300), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))


def micro_batches(lengths: Ints, budget_tokens: int) -> list[Ints]:
    """Row numbers of each micro-batch, cut as the encoder cuts them."""
    order = order_rows(lengths)
    batches = []
    start = 0
    while start < len(order):
        stop = take(lengths[order], start, budget_tokens)
        batches.append(order[start:stop])
        start = stop
    return batches


@given(lengths_of, st.integers(1, 2000))
def test_every_row_is_in_one_micro_batch_under_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert lengths[rows].sum() <= budget or len(rows) == 1


@given(lengths_of, st.integers(1, 2000))
def test_the_next_row_fits_into_no_micro_batch(lengths, budget):
    for rows, next_rows in pairwise(micro_batches(lengths, budget)):
        assert lengths[np.append(rows, next_rows[0])].sum() > budget


@given(lengths_of)
def test_rows_are_ordered_longest_first_and_equal_ones_keep_their_order(lengths):
    keys = [(-int(lengths[row]), int(row)) for row in order_rows(lengths)]
    assert keys == sorted(keys)


def test_a_row_over_the_budget_is_a_micro_batch_of_its_own():
    assert [rows.tolist() for rows in micro_batches(np.array([500, 10, 10]), 100)] == [[0], [1, 2]]


def test_rows_without_tokens_count_as_one_token():
    assert take(np.zeros(10, np.int64), 0, 4) == 4
