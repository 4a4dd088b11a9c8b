"""Vectors of the table that must not be published again, and rows of other tools that have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from safetensors.torch import load_file, save_file

from actors.errors import ModelError, TooManyQuarantined
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.run.retry import refresh_again
from pipeline.search.search import Searcher
from tests.checkpoints.bert import write_bert
from tests.integration.conftest import make_job, rows, write_corpus, write_one

NAN = float("nan")
UNFIT = {
    "nan": lambda vector: [NAN, *vector[1:]],
    "null": lambda _: None,
    "short": lambda vector: vector[:-1],
    "made up": lambda vector: [1.0, *[0.0] * (len(vector) - 1)],
}


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", [rows(10), rows(10, start=10), rows(10, start=20)])


@pytest.fixture
def job(corpus, tmp_path, tiny_model):
    return make_job(corpus, tmp_path / "table", tiny_model, run__unit_rows=100, table__precision="float32")


def vectors(job) -> dict[str, Any]:
    """As the files have them: another tool's file has another size than the log says."""
    found: dict[str, Any] = {}
    for uri in DeltaTable(job.table.uri).file_uris():
        table = pq.ParquetFile(uri.removeprefix("file://")).read()
        found.update(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    return found


def spoil(job, change, *names: str, chunk: int = 0) -> None:
    """Change the vectors of these rows in the table's only file, with chunking of this chunk of each."""
    (uri,) = DeltaTable(job.table.uri).file_uris()
    path = uri.removeprefix("file://")
    table = pq.ParquetFile(path).read()
    chunks = table["chunk"].to_pylist() if "chunk" in table.column_names else [chunk] * table.num_rows
    changed = [
        change(vector) if name in names and number == chunk else vector
        for name, number, vector in zip(table["id"].to_pylist(), chunks, table["embedding"].to_pylist(), strict=True)
    ]
    place = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(place, "embedding", pa.array(changed, pa.list_(pa.float32()))), path)


@pytest.mark.parametrize("kind", UNFIT)
def test_a_row_without_a_finite_vector_is_quarantined_and_retried(corpus, job, kind, reporter):
    backfill(job)
    right = vectors(job)
    spoil(job, UNFIT[kind], "r3")
    write_one(corpus / "part-0002.parquet", rows(11, start=20))
    with pytest.raises(TooManyQuarantined, match=r"1 of 31 rows .*1 encode_failed.*its vector in the table is not"):
        refresh(job)
    done = refresh_again(job, reporter)
    assert (done.rows, done.encoded, done.quarantined) == (31, 1, 0)
    found = vectors(job)
    assert len(found) == 31
    for name, vector in right.items():
        np.testing.assert_allclose(found[name], vector, atol=1e-6)


def test_a_document_with_one_invalid_chunk_is_quarantined_whole(corpus, tmp_path, tiny_model, reporter):
    job = make_job(
        corpus,
        tmp_path / "table",
        tiny_model,
        run={"address": "inline", "unit_rows": 100, "max_quarantined": 0.1},
        chunking={"mode": "split", "max_tokens": 8, "by": "tokens"},
    )
    backfill(job)
    table = DeltaTable(job.table.uri).to_pyarrow_table()
    chunks = [name for name in table["id"].to_pylist() if int(name[1:]) < 20]
    assert len(chunks) > 20
    spoil(job, UNFIT["nan"], "r3", "r4", chunk=1)
    (corpus / "part-0002.parquet").unlink()
    done = refresh(job)
    assert (done.rows_read, done.documents, done.quarantined) == (20, 18, 2)
    assert done.rows == len([name for name in chunks if name not in ("r3", "r4")])
    assert refresh_again(job, reporter).quarantined == 0
    assert sorted(DeltaTable(job.table.uri).to_pyarrow_table()["id"].to_pylist()) == sorted(chunks)


@pytest.mark.parametrize("theirs", [None, [0.5] * 3, []])
def test_a_foreign_row_without_a_vector_affects_no_other_row(corpus, job, theirs):
    backfill(job)
    right = vectors(job)
    table = DeltaTable(job.table.uri).to_pyarrow_table()
    wrong = [theirs if name == "r3" else vector for name, vector in right.items()]
    number = table.schema.get_field_index("embedding")
    table = table.set_column(number, "embedding", pa.array(wrong, pa.list_(pa.float32())))
    write_deltalake(job.table.uri, table.take(pa.array(np.arange(30)[::-1])), mode="overwrite")
    (hits,) = Searcher(job.table.uri).search(["title 25\n\ntext number 25"], k=30)
    assert hits[0].id == "r25"
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert len({hit.id for hit in hits} - {"r3"}) == len(hits) == 29
    write_one(corpus / "part-0002.parquet", rows(11, start=20))
    kept = job.model_copy(update={"table": job.table.model_copy(update={"foreign_commits": "keep"})})
    assert refresh(kept).published
    found = vectors(job)
    assert found.pop("r3") == theirs
    for name, vector in right.items():
        if name != "r3":
            np.testing.assert_allclose(found[name], vector, atol=1e-6)


def test_a_model_that_cannot_be_loaded_is_reported_once(corpus, tmp_path, reporter):
    model = write_bert(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][3] = NAN
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    job = make_job(corpus, tmp_path / "table", model)
    with pytest.raises(ModelError, match=r"^/.*has values in 'embeddings.LayerNorm.bias' that are not finite"):
        backfill(job, reporter)
    assert reporter.failed == []
