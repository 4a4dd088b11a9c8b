from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.batching.budget import BudgetController
from actors.encoders import describe, load_encoder
from actors.encoders.encoder import Encoder
from actors.encoders.packed import PackedBatch
from actors.errors import ConfigError, DataError
from tests.checkpoints import SENTENCES, write_bert


class Tight:
    """A family with memory for `limit` tokens: a larger batch raises as CUDA's allocator does.

    The state of a token is (token id, position in the row, 1, ...), so that swapped rows are detected.
    """

    def __init__(self, limit: int, hidden: int) -> None:
        self.limit = limit
        self.hidden = hidden
        self.sizes: list[tuple[int, int]] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        if len(batch.ids) > self.limit:
            raise torch.OutOfMemoryError(f"{len(batch.ids)} tokens tried")
        self.sizes.append((batch.rows, len(batch.ids)))
        states = torch.ones(len(batch.ids), self.hidden)
        states[:, 0] = batch.ids
        states[:, 1] = batch.positions
        return states


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return describe(str(write_bert(tmp_path_factory.mktemp("bert"))))


def rows(lengths: list[int]) -> pa.ListArray:
    return pa.array([[7 * i + j for j in range(length)] for i, length in enumerate(lengths)], pa.list_(pa.int32()))


def test_out_of_memory_halves_the_budget_and_loses_no_row(spec):
    tight = Tight(limit=40, hidden=spec.hidden)
    ids = rows([30, 5, 12, 8, 20, 1, 3, 40, 17, 9])
    states = Encoder(spec, device="cpu", family=tight, budget=BudgetController([160])).encode_token_states(ids)
    assert [state[:, 0].tolist() for state in states] == ids.to_pylist()
    encoder = Encoder(spec, device="cpu", family=tight, budget=BudgetController([160]))
    vectors = encoder.encode_tokens(ids)
    roomy = Encoder(spec, device="cpu", family=Tight(10**9, spec.hidden)).encode_tokens(ids)
    np.testing.assert_allclose(vectors, roomy, atol=1e-6, rtol=0)
    assert encoder.stats.out_of_memory == 2  # 160 -> 80 -> 40 at most
    assert encoder.stats.budget_tokens <= 40
    assert (encoder.stats.rows, encoder.stats.tokens) == (10, 145)


def test_the_budget_shrinks_to_one_row(spec):
    tight = Tight(limit=10, hidden=spec.hidden)
    encoder = Encoder(spec, device="cpu", family=tight, budget=BudgetController([1000]))
    assert encoder.encode_tokens(rows([10] * 5)).shape == (5, spec.dim)
    assert set(tight.sizes) == {(1, 10)}


def test_a_row_that_does_not_fit_alone_is_named(spec):
    encoder = Encoder(spec, device="cpu", family=Tight(limit=10, hidden=spec.hidden))
    with pytest.raises(DataError, match="row 1 with 11 tokens does not fit"):
        encoder.encode_tokens(rows([10, 11]))


def test_out_of_memory_while_pooling_is_handled(spec):
    encoder = Encoder(spec, device="cpu", family=Tight(10**9, spec.hidden), budget=BudgetController([100]))

    def reduce(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        if batch.rows > 1:
            raise torch.OutOfMemoryError("no room to pool")
        return hidden.sum(0, keepdim=True)

    seen = [int(row) for micro in encoder.micro_batches(rows([3, 4, 5]), reduce=reduce) for row in micro.rows]
    assert sorted(seen) == [0, 1, 2]


def test_results_do_not_depend_on_the_budget(spec):
    ids = load_encoder(spec).tokenizer.tokenize(SENTENCES * 3).ids
    results = [
        Encoder(spec, device="cpu", budget=BudgetController([budget])).encode_tokens(ids) for budget in (1, 50, 10_000)
    ]
    np.testing.assert_allclose(results[0], results[2], atol=1e-5, rtol=0)
    np.testing.assert_allclose(results[1], results[2], atol=1e-5, rtol=0)


def test_slices_and_chunked_arrays_are_accepted(spec):
    encoder = load_encoder(spec)
    ids = encoder.tokenizer.tokenize(SENTENCES).ids
    whole = encoder.encode_tokens(ids)
    np.testing.assert_allclose(encoder.encode_tokens(ids[2:5]), whole[2:5], atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoder.encode_tokens(pa.chunked_array([ids[:3], ids[3:]])), whole, atol=1e-5, rtol=0)


def test_no_rows_give_no_vectors(spec):
    encoder = load_encoder(spec)
    assert encoder.encode([]).shape == (0, spec.dim)
    assert encoder.encode_tokens(pa.array([], pa.list_(pa.int32()))).shape == (0, spec.dim)


@pytest.mark.parametrize("bad", [[[5, 6], []], [[5, 6], None]])
def test_a_row_without_tokens_is_refused(spec, bad):
    with pytest.raises(DataError, match="row 1 has no token ids"):
        load_encoder(spec).encode_tokens(pa.array(bad, pa.list_(pa.int32())))


def test_invalid_arguments_are_refused(spec):
    encoder = load_encoder(spec)
    with pytest.raises(ConfigError, match="takes a list of texts"):
        encoder.encode("one text")
    with pytest.raises(ConfigError, match="2 tasks for 1 rows"):
        encoder.encode(["one text"], task=["a", "b"])
    with pytest.raises(ConfigError, match="has no task 'retrieval'"):
        encoder.encode(["one text"], task="retrieval")
    with pytest.raises(ConfigError, match="device 'tpu:x'"):
        load_encoder(spec, device="tpu:x")
    with pytest.raises(ConfigError, match=r"'cuda:99' is not there.*sees \d+ CUDA GPUs.*run.gpus_per_replica=0"):
        load_encoder(spec, device="cuda:99")
    with pytest.raises(ConfigError, match="threads is 0"):
        load_encoder(spec, threads=0)
