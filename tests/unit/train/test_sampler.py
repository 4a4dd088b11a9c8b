"""Order of batches: one source a step, each row once, no text twice in a step, and resumed in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.errors import ConfigError
from pipeline.train.data import QUERY, Source
from pipeline.train.sampler import SourceBatchSampler


class Hashed(Source):
    """A source of which only the hashes are read."""

    def __init__(self, rows, weight=1.0, query=None, passage=None):
        super().__init__(f"source of {rows}", Path(), weight, "infonce", 0, rows)
        self.__dict__["given"] = {
            True: np.arange(rows) if query is None else query,
            False: -1 - np.arange(rows) if passage is None else passage,
        }

    def hashes(self, column):
        return self.__dict__["given"][column == QUERY]


def batches(sampler, epoch=0, first_step=0):
    sampler.set_epoch(epoch, first_step)
    return list(sampler)


def test_a_step_gives_every_rank_a_batch_of_one_source():
    sources = [Hashed(50), Hashed(33), Hashed(100)]
    sampler = SourceBatchSampler(sources, 4, ranks=3, seed=1)
    found = batches(sampler)
    assert len(found) == len(sampler) == 3 * sampler.steps == 3 * (4 + 2 + 8)
    assert {len(batch) for batch in found} == {4}
    of_source = np.searchsorted([50, 83, 183], np.array(found).reshape(sampler.steps, 12), side="right")
    assert (of_source == of_source[:, :1]).all()
    assert np.bincount(of_source[:, 0]).tolist() == [4, 2, 8]
    assert of_source[:, 0].tolist() != sorted(of_source[:, 0])  # the sources alternate
    assert len({row for batch in found for row in batch}) == 12 * sampler.steps  # no row twice


def test_the_order_depends_on_seed_and_epoch_alone():
    sources = [Hashed(50), Hashed(33)]
    first = batches(SourceBatchSampler(sources, 5, seed=7), epoch=2)
    other = SourceBatchSampler(sources, 5, seed=7)
    batches(other, epoch=0)
    assert batches(other, epoch=2) == first
    assert batches(other, epoch=3) != first
    assert batches(SourceBatchSampler(sources, 5, seed=8), epoch=2) != first


def test_two_ranks_share_the_rows_that_one_has():
    query = np.arange(96) // 3
    alone, shared = (
        SourceBatchSampler([Hashed(96, query=query), Hashed(40)], 8 // ranks, ranks=ranks) for ranks in (1, 2)
    )
    assert np.concatenate(batches(alone)).tolist() == np.concatenate(batches(shared)).tolist()


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.5])
def test_a_resume_in_the_middle_gives_the_rest_of_the_epoch(weight):
    sources = [Hashed(64, weight), Hashed(40)]
    whole = batches(SourceBatchSampler(sources, 4, ranks=2, seed=3), epoch=1)
    for step in (0, 1, 6, len(whole) // 2):
        assert batches(SourceBatchSampler(sources, 4, ranks=2, seed=3), epoch=1, first_step=step) == whole[2 * step :]


def test_a_weight_says_how_often_a_row_is_used_in_an_epoch():
    sampler = SourceBatchSampler([Hashed(40, 0.5), Hashed(40, 2.0), Hashed(40, 0.001)], 4)
    used = [np.concatenate(batches(sampler, epoch)) for epoch in (0, 1)]
    counts = [np.bincount(rows, minlength=120).reshape(3, 40) for rows in used]
    assert (counts[0][1] == 2).all()
    assert counts[0][0].sum() == 20
    assert (counts[0][0] + counts[1][0] == 1).all()  # the second epoch takes the other half
    assert counts[0][2].sum() == 4  # one step is the least


def test_no_text_is_twice_in_a_step():
    random = np.random.default_rng(5)
    query = random.integers(0, 300, 900)  # each about three times, and half of the passages are queries
    passage = np.where(random.random(900) < 0.5, random.integers(0, 300, 900), 1000 + np.arange(900))
    sampler = SourceBatchSampler([Hashed(900, query=query, passage=passage)], 32, ranks=2)
    repeats = 0
    for epoch in (0, 1, 2):
        rows = np.array(batches(sampler, epoch)).reshape(-1, 64)
        assert len(np.unique(rows)) == rows.size
        for step in rows:
            own = [{query[row], passage[row]} for row in step]
            repeats += sum(map(len, own)) - len(set().union(*own))
    assert repeats == 0


@pytest.mark.parametrize("query", [np.zeros(100, np.int64), np.arange(100) // 50])
def test_a_text_that_too_many_rows_have_stays_in_its_steps(query):
    found = batches(SourceBatchSampler([Hashed(100, query=query)], 10))
    assert sorted(row for batch in found for row in batch) == list(range(100))


def test_two_steps_share_the_copies_of_texts():
    sampler = SourceBatchSampler([Hashed(64, query=np.arange(64) // 2)], 32)
    assert all(len({row // 2 for row in batch}) == 32 for batch in batches(sampler))


def test_fewer_rows_than_a_step_are_refused():
    with pytest.raises(ConfigError, match="has 31 rows, and a step takes 32 of one source; set train.batch_rows to 31"):
        SourceBatchSampler([Hashed(31)], 16, ranks=2)


def test_a_weight_that_makes_an_epoch_endless_is_refused():
    with pytest.raises(ConfigError, match="'source of 8' has the weight 1e\\+09: lower it"):
        SourceBatchSampler([Hashed(8, 1e9), Hashed(8)], 4)
