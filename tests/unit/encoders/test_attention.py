from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.encoders.alibi import alibi
from actors.encoders.attention import attend, attend_padded, hankel
from actors.encoders.packed import pack

HEADS, WIDTH = 4, 8


def uneven(length: int) -> torch.Tensor:
    """A bias that tells left from right, as T5's does."""
    distance = torch.arange(1 - length, length, dtype=torch.float32)
    return torch.stack([torch.sin(distance * (head + 1)) for head in range(HEADS)])


def by_hand(query, key, value, lengths, *, scale, bias):
    out, start = [], 0
    for length in lengths:
        q, k, v = (x[start : start + length].double().transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        if bias is not None:
            relative = bias(length).double()
            for i in range(length):
                for j in range(length):
                    scores[:, i, j] += relative[:, j - i + length - 1]
        out.append((torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(length, HEADS * WIDTH))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [[7, 5, 5, 1], [3, 3], [1], [2, 6, 2, 2, 6]])
@pytest.mark.parametrize("bias", [None, uneven, alibi(HEADS, torch.device("cpu"))])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_both_ways_are_attention_within_each_row(lengths, bias, scale):
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), 3, HEADS, WIDTH)
    query, key, value = fused.unbind(1)
    batch = pack(np.arange(sum(lengths)), np.array(lengths), device=torch.device("cpu"))
    expected = by_hand(query, key, value, lengths, scale=scale or WIDTH**-0.5, bias=bias).float()
    torch.testing.assert_close(attend(query, key, value, batch, scale=scale, bias=bias), expected, atol=1e-5, rtol=0)
    for slice_elements in (1, 200, 10**9):
        padded = attend_padded(query, key, value, batch, scale=scale, bias=bias, slice_elements=slice_elements)
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=0)


def test_the_square_of_a_bias_is_a_view():
    relative = uneven(5)
    square = hankel(relative, 5)
    assert square.untyped_storage().data_ptr() == relative.untyped_storage().data_ptr()
    for i in range(5):
        for j in range(5):
            assert square[2, 4 - i, j] == relative[2, j - i + 4]


def test_a_batch_knows_where_its_rows_lie():
    batch = pack(np.arange(12), np.array([4, 3, 3, 2]), device=torch.device("cpu"), tasks=["a", "b", "a", "b"])
    assert [(run.row, run.rows, run.length, run.token) for run in batch.runs] == [
        (0, 1, 4, 0),
        (1, 2, 3, 4),
        (3, 1, 2, 10),
    ]
    assert batch.positions().tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1]
    assert batch.offsets().tolist() == [0, 4, 7, 10, 12]
    assert batch.spread(torch.tensor([1, 2, 3, 4])).tolist() == [1] * 4 + [2] * 3 + [3] * 3 + [4] * 2
    assert batch.tasks == ("a", "b", "a", "b")
