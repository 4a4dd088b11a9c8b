"""Metrics of retrieval, against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.quality.metrics import mean_ndcg, mean_overlap


def test_overlap_is_the_mean_share_of_neighbours_in_common():
    first = np.array([[1, 2], [3, 4], [5, 6]])
    second = np.array([[2, 1], [4, 9], [7, 8]])
    assert mean_overlap(first, second) == pytest.approx((1 + 0.5 + 0) / 3)


def test_ndcg_of_a_relevant_document_at_rank_two():
    pytest.importorskip("ir_measures")
    judgements: list[dict[str, Any]] = [{"query": "q", "doc": "a"}, {"query": "r", "doc": "c", "relevance": 1}]
    results = [{"b": 0.9, "a": 0.8}, {"c": 0.7}]
    assert mean_ndcg(judgements, ["q", "r"], results, k=10) == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert mean_ndcg(judgements, ["q", "r"], results, k=1) == pytest.approx(0.5)
