"""Vectors of the texts of a curation: each text is encoded once, over all runs."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from actors.encoders import load_encoder
from actors.errors import ConfigError
from pipeline.curate.embedding import embed, text_tables
from pipeline.curate.steps.base import Seen
from pipeline.execute.progress import NullReporter
from pipeline.job.config import Run
from tests.checkpoints.bert import write_bert

SIDES = ("query", "passage")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_bert(tmp_path_factory.mktemp("model")))


def seen_of(folder, rows: Sequence[tuple[str | None, str | None]]) -> Seen:
    connection = duckdb.connect()
    queries, passages = zip(*rows, strict=True)
    connection.register(
        "incoming",
        pa.table(
            {"n": range(len(rows)), "query": pa.array(queries, pa.string()), "passage": pa.array(passages, pa.string())}
        ),
    )
    connection.execute("create table seen as select * from incoming")
    return Seen(connection, "seen", SIDES, NullReporter(), str(folder), Run(address="inline"))


def vectors_of(seen: Seen, model: str) -> tuple[int, dict[str, dict[int, np.ndarray]]]:
    """The number of texts that were encoded, and the vector of each row that has one, by side."""
    tables = text_tables(model, {"max_tokens": 16}, folder=seen.folder, run=seen.run)
    found = embed(seen, tables, SIDES)
    rows = {side: seen.connection.execute(f"select n, place from {found[side].rows}").fetchall() for side in SIDES}
    return tables.encoded, {
        side: {n: found[side].vectors(np.array([place]))[0] for n, place in rows[side]} for side in SIDES
    }


@pytest.mark.slow
def test_a_text_is_encoded_once_for_both_sides_and_all_runs(tmp_path, model):
    rows = [("one", "two"), ("two", "three words here"), (" ", "one"), (None, "four"), ("one", "two")]
    encoded, vectors = vectors_of(seen_of(tmp_path, rows), model)
    assert encoded == 4
    assert {side: sorted(of_side) for side, of_side in vectors.items()} == {
        "query": [0, 1, 4],
        "passage": [0, 1, 2, 3, 4],
    }
    encoder = load_encoder(text_tables(model, {"max_tokens": 16}).spec)
    for side, of_side in vectors.items():
        for row, vector in of_side.items():
            (exact,) = encoder.encode([str(rows[row][side == "passage"])])
            assert vector @ exact > 0.999
    encoded, again = vectors_of(seen_of(tmp_path, [*rows, ("five", "six")]), model)
    assert encoded == 2
    for side, of_side in vectors.items():
        for row, vector in of_side.items():
            np.testing.assert_array_equal(again[side][row], vector)
    assert vectors_of(seen_of(tmp_path, rows[2:]), model)[0] == 0


def test_no_text_is_no_error(tmp_path, model):
    assert vectors_of(seen_of(tmp_path, [(None, " ")]), model) == (0, {"query": {}, "passage": {}})


def test_a_second_model_is_refused():
    with pytest.raises(ConfigError, match="name it in the key `model`"):
        text_tables("a/b", {"model": "c/d"})
