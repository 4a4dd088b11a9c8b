"""Figures of units: measured from what workers saw, and adding up to those of all rows at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.unit.figures import BINS, Figures
from actors.vectors import VectorColumn, dense


def measured(lengths):
    figures = Figures()
    figures.measure_lengths(pa.chunked_array([pa.array(lengths, pa.int32())]))
    return figures


def test_each_length_is_in_the_bin_between_its_ends():
    lengths = np.random.default_rng(0).integers(1, 9000, 500)
    figures = measured(lengths)
    for number, count in enumerate(figures.lengths):
        assert count == ((lengths >= BINS[number]) & (lengths < BINS[number + 1])).sum()
    assert sum(figures.lengths) == 500
    assert figures.longest == lengths.max()
    assert measured([]).lengths == []


def test_units_add_up_to_all_rows_at_once():
    rng = np.random.default_rng(1)
    column = VectorColumn("embedding", "dense", 4)
    lengths, vectors = rng.integers(1, 600, 90), rng.normal(size=(90, 4)).astype(np.float32)
    whole, total = Figures(), Figures()
    whole.measure_lengths(pa.chunked_array([pa.array(lengths)]))
    whole.measure_norms(pa.table({"embedding": dense(vectors)}), [column])
    for rows in np.split(np.arange(90), [5, 6, 50]):
        part = measured(lengths[rows])
        part.measure_norms(pa.table({"embedding": dense(vectors[rows])}), [column])
        part.reasons, part.finished_s = {"null_text": len(rows)}, float(rows[-1])
        total.add(Figures.from_json(part.to_json()))
    assert (total.lengths, total.longest) == (whole.lengths, whole.longest)
    np.testing.assert_allclose(total.norms["embedding"], whole.norms["embedding"], rtol=1e-6)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(total.norms["embedding"], [90, norms.min(), norms.sum(), norms.max()], rtol=1e-5)
    assert (total.reasons, total.finished_s) == ({"null_text": 90}, 89.0)


def test_only_single_unit_vectors_have_norms_and_rows_without_one_have_none():
    figures = Figures()
    rows = pa.table(
        {
            "one": pa.array([[3.0, 4.0], None, [1.0]], pa.list_(pa.float32())),
            "encoding": pa.array([[9.0, 9.0]] * 3, pa.list_(pa.float32())),
            "many": pa.array([[[0.0, 1.0], [0.0, 2.0]], [], None], pa.list_(pa.list_(pa.float32()))),
        }
    )
    one, encoding = (VectorColumn(name, "dense", 2, normalized=name == "one") for name in ("one", "encoding"))
    figures.measure_norms(rows, [one, encoding, VectorColumn("many", "multi", 2)])
    assert figures.norms == {"one": [1, 5.0, 5.0, 5.0]}


def test_a_receipt_of_an_older_release_has_no_figures():
    assert Figures.from_json("") == Figures()
