"""Metrics of retrieval, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.quality.judged import Judged
from pipeline.quality.metrics import mean_overlap, retrieval_values
from pipeline.quality.retrieval import measure


def test_overlap_is_the_mean_share_of_neighbours_in_common():
    first = np.array([[1, 2], [3, 4], [5, 6]])
    second = np.array([[2, 1], [4, 9], [7, 8]])
    assert mean_overlap(first, second) == pytest.approx((1 + 0.5 + 0) / 3)


def test_each_measure_of_each_query():
    judgements = {"q": {"a": 1, "z": 1}, "r": {"c": 2, "d": 1}, "nothing found": {"a": 1}}
    values = retrieval_values(judgements, {"q": {"b": 0.9, "a": 0.8}, "r": {"c": 0.7, "d": 0.7}})
    ideal = 1 + 1 / math.log2(3)
    # Of two equal scores the larger id comes first, as in trec_eval.
    assert values["nDCG@10"] == pytest.approx(
        [1 / math.log2(3) / ideal, (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)), 0]
    )
    assert values["MAP"] == pytest.approx([0.25, 1, 0])
    assert values["MRR@10"] == pytest.approx([0.5, 1, 0])
    assert values["Recall@10"] == pytest.approx([0.5, 1, 0])
    assert values["P@1"] == pytest.approx([0, 1, 0])


def test_the_reciprocal_rank_ends_after_ten_documents_in_the_order_of_trec_eval():
    found = {f"d{number:02}": 0.5 for number in range(11)}  # all are equal: d10 is first, d00 is the eleventh
    judgements = {"last": {"d00": 1}, "first": {"d10": 1}}
    assert retrieval_values(judgements, dict.fromkeys(judgements, found))["MRR@10"].tolist() == [0, 1]


def test_a_document_is_as_near_as_its_best_row():
    rows = ["a"] * 30 + ["b"] * 3 + ["c"]  # 30 chunks of one document are nearer than those of the others
    asked = []

    def search(queries, k):
        asked.append((len(queries), k))
        each = [(query, 1 - row / 100, name) for query in range(len(queries)) for row, name in enumerate(rows[:k])]
        return pa.table(dict(zip(("_query", "_score", "id"), map(list, zip(*each, strict=True)), strict=True)))

    judged = Judged({"q": "", "r": ""}, {"q": {"b": 1}, "r": {"c": 1}}, "")
    values = measure(judged, pa.array([[1.0], [1.0]]), search, depth=3)
    assert values["MRR@10"] == pytest.approx([1 / 2, 1 / 3])
    assert asked == [(2, 3), (2, 12), (2, 48)]
