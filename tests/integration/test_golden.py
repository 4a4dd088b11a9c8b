"""Tables of an earlier version: read, searched, refreshed and continued, with every stored vector bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table.delta_table import plain_schema
from pipeline.table.diff import diff
from tests.golden import FOLDER, MODEL, job_of, row, write_corpus

ROWS = [row(number) for number in range(12)]


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a golden table and returns the job that wrote it, for the copy."""

    def copy(name: str) -> Any:
        write_corpus(ROWS[:8], [*ROWS[8:], row(12)] if name == "partitioned" else ROWS[8:])
        return job_of(name, shutil.copytree(FOLDER / name, tmp_path / name))

    return copy


def stored(table: Path | str, version: int | None = None) -> dict[tuple[str, int], dict[str, Any]]:
    """Return id and chunk to the row of a version, the vector as its bytes."""
    rows = DeltaTable(str(table), version=version).to_pyarrow_table().to_pylist()
    return {
        (each["id"], each.get("chunk", 0)): {**each, "embedding": np.float32(each["embedding"]).tobytes()}
        for each in rows
    }


@pytest.mark.parametrize("name", ["documents", "chunks", "partitioned"])
def test_an_old_table_is_up_to_date_and_searched(copied, name):
    job = copied(name)
    assert not backfill(job).published
    assert not refresh(job).published
    hits = Searcher(job.table.uri, model=str(MODEL)).search([ROWS[3]["text"]], k=3)[0]
    assert hits[0].id == "r3"
    if name != "chunks":
        assert hits[0].score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["documents", "chunks", "partitioned"])
def test_a_refresh_of_an_old_table_keeps_its_vectors_and_schema(copied, name):
    job = copied(name)
    before, table = stored(job.table.uri), DeltaTable(job.table.uri)
    old = int(table.version())
    # One text is new, one is moved to another shard, one shard is gone.
    write_corpus(ROWS[:8], [row(9, text="another text"), row(20, text=ROWS[8]["text"])])
    outcome = refresh(job)
    assert (outcome.published, outcome.encoded) == (True, 1)
    after = stored(job.table.uri)
    kept = {key: value for key, value in before.items() if int(key[0][1:]) < 8}
    assert {key: after.get(key) for key in kept} == kept
    moved = {key: value["embedding"] for key, value in before.items() if key[0] == "r8"}
    assert {("r8", chunk): value["embedding"] for (name, chunk), value in after.items() if name == "r20"} == moved
    assert {key[0] for key in after} == {*(f"r{number}" for number in range(8)), "r9", "r20"}
    assert plain_schema(DeltaTable(job.table.uri)) == plain_schema(table)
    assert stored(job.table.uri, old) == before
    difference = diff(job.table.uri, old, outcome.version)
    assert not difference.embedding_spec_changed
    assert difference.removed == sum(key[0] in ("r8", "r10", "r11", "r12") for key in before)


@pytest.mark.parametrize("name", ["documents", "chunks", "partitioned"])
def test_today_the_same_job_makes_the_same_table(copied, tmp_path, name):
    old = stored(copied(name).table.uri)
    job = job_of(name, tmp_path / "new")
    backfill(job)
    new = stored(job.table.uri)
    assert new.keys() == old.keys()
    for key, value in new.items():
        vector, expected = (np.frombuffer(each[key]["embedding"], np.float32) for each in (new, old))
        np.testing.assert_allclose(vector, expected, atol=0.01)  # other processors sum in another order
        assert {**value, "embedding": None} == {**old[key], "embedding": None}


def test_a_run_that_an_old_version_began_is_finished(copied, reporter):
    job = copied("stopped")
    outcome = backfill(job, reporter)
    assert (outcome.published, outcome.rows, outcome.encoded) == (True, 12, 12)
    assert [receipt.unit for receipt in reporter.receipts] == [1, 2]  # the first unit is not repeated
    assert {key[0] for key in stored(job.table.uri)} == {f"r{number}" for number in range(12)}
    finished = stored(FOLDER / "documents")
    assert {key: stored(job.table.uri)[key] for key in finished if int(key[0][1:]) < 4} == {
        key: value for key, value in finished.items() if int(key[0][1:]) < 4
    }
