from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.batching.planner import Cost, invert, order_rows, plan, take

lengths_of = st.lists(st.integers(1, 300), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))
costs = st.sampled_from(["tokens", "padded"])


def cost_of(lengths, cost: Cost) -> int:
    return int(lengths.sum()) if cost == "tokens" else int(lengths.max()) * len(lengths)


@given(lengths_of, st.integers(1, 2000), costs)
def test_every_row_is_in_one_micro_batch_under_the_budget(lengths, budget, cost):
    micro = plan(lengths, budget, cost=cost).micro_batches
    assert sorted(np.concatenate(micro).tolist()) == list(range(len(lengths)))
    for rows in micro:
        assert cost_of(lengths[rows], cost) <= budget or len(rows) == 1


@given(lengths_of, st.integers(1, 2000), costs)
def test_no_micro_batch_could_have_taken_the_next_row(lengths, budget, cost):
    micro = plan(lengths, budget, cost=cost).micro_batches
    for rows, after in pairwise(micro):
        assert cost_of(lengths[np.append(rows, after[0])], cost) > budget


@given(lengths_of, st.integers(1, 2000))
def test_inverse_brings_results_back_in_order(lengths, budget):
    made = plan(lengths, budget)
    results = np.concatenate([lengths[rows] for rows in made.micro_batches])
    assert (results[made.inverse] == lengths).all()


@given(lengths_of)
def test_rows_come_longest_first_and_equal_ones_keep_their_order(lengths):
    order = order_rows(lengths)
    keys = [(-int(lengths[row]), int(row)) for row in order]
    assert keys == sorted(keys)
    assert (order[invert(order)] == np.arange(len(order))).all()


def test_a_row_over_the_budget_goes_alone():
    lengths = np.array([500, 10, 10])
    assert [rows.tolist() for rows in plan(lengths, 100).micro_batches] == [[0], [1, 2]]


def test_rows_of_no_tokens_still_end_a_micro_batch():
    assert take(np.zeros(10, np.int64), 0, 4) == 4


def test_padding_counts_where_rows_are_padded():
    lengths = np.array([100, 10, 10])
    assert take(lengths, 0, 120) == 3
    assert take(lengths, 0, 120, cost="padded") == 1


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="budget_tokens is 0"):
        plan(np.array([1]), 0)
