"""Tests of micro-batches that run side by side: every row once, in order, for any number of threads, also after errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.batching.budget import BudgetController
from actors.encoders import describe
from actors.encoders.compute.threads import Threads
from actors.encoders.encoder import Encoder
from actors.encoders.packed import PackedBatch
from actors.errors import DataError
from tests.checkpoints import SENTENCES, write_bert


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return describe(str(write_bert(tmp_path_factory.mktemp("bert"))))


@pytest.fixture(params=[2, 3])
def threads(request) -> Iterator[int]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(threads_before)


class Narrow:
    """A family whose states are the token ids, with memory for `limit` tokens. Records the threads that call it."""

    def __init__(self, limit: int, hidden: int, parallel: int = 1) -> None:
        self.limit = limit
        self.hidden = hidden
        self.seen: set[tuple[int, int]] = set()
        self._barrier = threading.Barrier(parallel)
        self._first = True

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        if self._first:
            self._barrier.wait(timeout=60)  # times out if the calls run one after the other
            self._first = False
        self.seen.add((threading.get_ident(), torch.get_num_threads()))
        if len(batch.ids) > self.limit:
            raise torch.OutOfMemoryError("too many")
        return batch.ids[:, None].float().expand(-1, self.hidden) + torch.arange(self.hidden)


def rows(count: int) -> pa.ListArray:
    return pa.array([list(range(i, i + 1 + i % 37)) for i in range(count)], pa.list_(pa.int32()))


def test_calls_run_in_parallel_with_one_torch_thread_each(spec, threads):
    narrow = Narrow(10**9, spec.hidden, parallel=threads)
    encoder = Encoder(spec, device="cpu", family=narrow, budget=BudgetController([300]))
    encoder.encode_tokens(rows(200))
    assert {number for _, number in narrow.seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in narrow.seen}
    assert torch.get_num_threads() == threads


def test_a_single_micro_batch_runs_in_the_calling_thread(spec, threads):
    narrow = Narrow(10**9, spec.hidden)
    Encoder(spec, device="cpu", family=narrow, budget=BudgetController([10_000])).encode_tokens(rows(30))
    assert narrow.seen == {(threading.get_ident(), threads)}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10**9, 150, 37])
def test_row_order_is_kept_after_out_of_memory(spec, threads, limit):
    ids = rows(150)
    narrow = Narrow(limit, spec.hidden)
    encoder = Encoder(spec, device="cpu", family=narrow, budget=BudgetController([400]))
    actual = encoder.encode_tokens(ids)
    wanted = Encoder(spec, device="cpu", family=Narrow(10**9, spec.hidden)).encode_tokens(ids)
    np.testing.assert_array_equal(actual, wanted)
    assert (encoder.stats.rows, encoder.stats.tokens) == (150, sum(map(len, ids.to_pylist())))
    assert (encoder.stats.out_of_memory > 0) == (limit < 10**9)


def test_a_row_that_does_not_fit_raises_and_the_next_call_works(spec, threads):
    encoder = Encoder(spec, device="cpu", family=Narrow(36, spec.hidden), budget=BudgetController([100]))
    with pytest.raises(DataError, match="with 37 tokens does not fit"):
        encoder.encode_tokens(rows(100))
    assert encoder.encode_tokens(rows(20)).shape == (20, spec.dim)


@pytest.mark.slow
def test_vectors_are_the_same_as_with_one_thread(minilm, threads):
    texts = SENTENCES * 40
    encoder = Encoder(describe(str(minilm), dtype="float32"), device="cpu", budget=BudgetController([200]))
    actual = encoder.encode(texts)
    torch.set_num_threads(1)
    np.testing.assert_allclose(actual, encoder.encode(texts), atol=1e-5, rtol=0)


def test_results_are_in_order_and_no_call_runs_after_the_caller_stops():
    pool = Threads(3)
    calls = iter(range(50))
    started: list[int] = []

    def next_call():
        number = next(calls)

        def call() -> int:
            started.append(number)
            return number

        return call

    results = pool.in_order(next_call)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    count = len(started)
    assert pool._pool.submit(lambda: len(started)).result() == count <= 8
