from __future__ import annotations

import numpy as np
import torch

from actors.encoders.packed import pack
from actors.encoders.pooling import finish, pool, sum_stretches


def test_a_shortened_vector_is_cut_before_it_is_normalised():
    vectors = finish(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    torch.testing.assert_close(vectors, torch.tensor([[0.6, 0.8]]))


def test_a_row_without_a_unit_vector_is_marked():
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[3.0, 4.0, 0.0], [0, 0, 0], [0, 0, 5], [nan, 1, 0], [1, 1, inf], [1, 1, nan], [3e38, 3e38, 0]])
    vectors = finish(rows, 2)
    torch.testing.assert_close(vectors[0], torch.tensor([0.6, 0.8]))
    assert torch.isposinf(vectors[1:3]).all(), "a vector of zeros has no direction"
    assert torch.isnan(vectors[3:]).all(), "the dropped values are checked too"


def test_the_mean_is_computed_in_float32():
    # In bfloat16 a running sum of ones stops growing at 256.
    batch = pack(np.zeros(1000, np.int64), np.array([1000]), device=torch.device("cpu"))
    assert pool(torch.ones(1000, 1, dtype=torch.bfloat16), batch, "mean").tolist() == [[1.0]]


def test_every_row_is_pooled_over_its_own_tokens():
    batch = pack(np.zeros(9, np.int64), np.array([4, 2, 2, 1]), device=torch.device("cpu"))
    hidden = torch.arange(9.0)[:, None]
    assert pool(hidden, batch, "mean").flatten().tolist() == [1.5, 4.5, 6.5, 8.0]
    assert pool(hidden, batch, "cls").flatten().tolist() == [0.0, 4.0, 6.0, 8.0]
    assert pool(hidden, batch, "last").flatten().tolist() == [3.0, 5.0, 7.0, 8.0]


def test_stretches_are_summed_in_pieces_over_their_own_tokens():
    """As on a GPU: long, short and empty ones, with gaps between them and an infinite state beside one."""
    torch.manual_seed(0)
    hidden = torch.randn(200, 6).bfloat16()
    hidden[151] = torch.inf
    starts, stops = np.array([0, 3, 40, 105, 120, 199]), np.array([3, 36, 104, 105, 151, 200])
    ends = torch.from_numpy(np.stack([starts, stops])).int()
    sums = sum_stretches(hidden, ends[0], ends[1], stops - starts)
    right = [hidden[start:stop].double().sum(0) for start, stop in zip(starts, stops, strict=True)]
    torch.testing.assert_close(sums.double(), torch.stack(right), atol=1e-5, rtol=1e-5)
