"""The measurement of a model in smaller types: what is measured, and the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import precision
from pipeline.quality.judged import Judged


class Encoder:
    """Words as vectors: each text is the sum of its letters."""

    dim = 26

    def encode(self, texts):
        counts = [[text.lower().count(chr(ord("a") + letter)) for letter in range(self.dim)] for text in texts]
        return np.array(counts, np.float32).reshape(len(texts), self.dim)


def test_each_type_is_measured_on_the_same_texts(monkeypatch):
    monkeypatch.setattr(precision, "load_encoder", lambda _: Encoder())
    asked = Judged({"1": "aab", "2": "xyz"}, {"1": {"a": 1}, "2": {"x": 1}}, "toy")
    triplets = pa.table({"anchor": ["abc", "abc"], "entailment": ["abcd", "xyz"], "negative": ["xyz", "abcd"]})
    ratings = [("aa", "ab"), ("aa", "bb"), ("xy", "xy")], [0.5, 0.0, 1.0]
    todo = [
        precision.retrieval("code", "functions", asked, ["a", "x"], ["aabb", "xxyz"]),
        precision.similarity("words", "ratings", *ratings),
        precision.negation(triplets),
    ]
    found = precision.measure(Path("model"), todo, lambda _: None)
    labels = [row.label for row in found[0][1].rows]
    stored = [f"float32 | {each}" for each in ("float32", "float16", "bfloat16", "int8", "binary")]
    assert labels == [*stored, "bfloat16 | float32", "int8 | float32"]
    firsts = [{name: each.value for name, each in evaluation.rows[0].scores.items()} for _, evaluation in found]
    assert firsts == [{"nDCG@10": 1.0}, {"Spearman": 1.0}, {"HardNegation": 0.5, "EasyNegation": 0.5}]
    page = precision.markdown(found, command="python -m benchmarks precision", date="2026-11-29")
    assert "| float32 | binary | 3 | 1.0000 (1.0000 to 1.0000) |" in page
    assert "- code: functions: 2 queries, 2 documents" in page
