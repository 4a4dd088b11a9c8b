"""A corpus, a checkpoint and a job file made by somebody who means harm: errors of ours, and nothing outside the table."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import commit, delta_table
from tests.integration.conftest import make_job, rows, write_corpus
from tests.unit.source.test_paths import TRICKS


@pytest.mark.parametrize("column", ["lang", "../../../outside"])
def test_ids_and_partitions_that_look_like_paths(tmp_path, tiny_model, reporter, column):
    source = [{**row, "id": trick or "empty", column: trick} for row, trick in zip(rows(99), TRICKS, strict=False)]
    source.append({**rows(1, start=50)[0], "id": "none", column: None})
    corpus = write_corpus(tmp_path / "in" / "corpus", [source[:9], source[9:]])
    folder = tmp_path / "out"
    folder.mkdir()
    job = make_job(corpus, folder / "table", tiny_model, source__keep=[column], table__partition_by=[column])
    assert backfill(job, reporter).rows == len(source)
    expected = {str(row["id"]): row[column] or None for row in source}

    def found() -> dict[str, str | None]:
        return {row["id"]: row[column] for row in DeltaTable(str(folder / "table")).to_pyarrow_table().to_pylist()}

    assert found() == expected
    assert Searcher(str(folder / "table")).search(["text number 3"], k=1)
    source[1]["text"] = "another one"
    write_corpus(corpus, [source[:8], source[9:]])
    del expected[str(source[8]["id"])]
    assert refresh(job, reporter).published
    assert found() == expected
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert os.listdir(folder) == ["table"]


def test_a_file_whose_name_the_log_escapes_is_removed_with_the_others(tmp_path, tiny_model, reporter):
    """Delta's log writes paths as URLs; a removal under the escaped name would remove nothing, and double the rows."""
    corpus = write_corpus(tmp_path / "corpus", [rows(9)])
    table = tmp_path / "table"
    job = make_job(corpus, table, tiny_model, table__partition_by=["lang"])
    backfill(job, reporter)
    before = DeltaTable(str(table))
    path, size_bytes = next(iter(delta_table.file_sizes(before).items()))
    other = f"data/some one's/{os.path.basename(path)}"  # as another tool's compaction might name it
    (table / other).parent.mkdir()
    (table / path).rename(table / other)
    lang = commit.sized_files(before)[path].partition
    stats = json.dumps({"numRecords": 3})
    before.create_write_transaction(
        [RemoveAction(path, True, 0), AddAction(other, size_bytes, lang, 0, True, stats)],
        mode="append",
        schema=pa.schema(before.schema().to_arrow()),
        partition_by=["lang"],
        commit_properties=CommitProperties(
            custom_metadata={"vectide.run": str(getattr(delta_table.state_of(before), "run", ""))}
        ),
    )
    assert other in delta_table.file_sizes(DeltaTable(str(table)))
    write_corpus(corpus, [rows(8)])
    assert refresh(job, reporter).published
    assert sorted(DeltaTable(str(table)).to_pyarrow_table()["id"].to_pylist()) == [f"r{n}" for n in range(8)]
