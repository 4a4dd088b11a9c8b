"""A modality besides text, registered as one would be: byte strings, embedded by their histogram."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.encoders.families.detect import FAMILIES
from actors.errors import ConfigError
from actors.inputs import MODALITIES
from pipeline.run.backfill import backfill
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table.quarantine import quarantine
from tests.checkpoints.bert import write_bert
from tests.integration.conftest import make_job
from tests.toys.histogram import BYTES, VALUES, layout, write_histogram

CONTENT = [bytes([number, 0, number + 1]) * (1 + number) for number in range(20)]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(MODALITIES, "toy_bytes", BYTES)
    monkeypatch.setitem(FAMILIES, "toy_histogram", (layout, "tests.toys.histogram:build"))


def write(folder, content: list[bytes | None], kind: pa.DataType | None = None) -> None:
    folder.mkdir(exist_ok=True)
    ids = [f"r{number}" for number in range(len(content))]
    pq.write_table(pa.table({"id": ids, "data": pa.array(content, kind or pa.binary())}), folder / "0.parquet")


def job_of(tmp_path, **changes):
    changes = {
        "source__text": ["data"],
        "source__keep": [],
        "run__unit_rows": 8,
        "run__max_quarantined": 0.2,
        **changes,
    }
    return make_job(tmp_path / "corpus", tmp_path / "table", write_histogram(tmp_path / "model"), **changes)


def stored(table) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in DeltaTable(str(table)).to_pyarrow_table().to_pylist()}


def test_bytes_are_planned_encoded_refreshed_and_searched(tmp_path):
    write(tmp_path / "corpus", [*CONTENT, b"", None])
    job = job_of(tmp_path, table__precision="float32")
    planned = estimate(job)
    assert (planned.rows, planned.truncated_share, planned.dim) == (22, 10 / 20, VALUES)
    assert planned.tokens_per_row == np.mean([min(len(content), 32) for content in CONTENT])
    outcome = backfill(job)
    assert (outcome.rows, outcome.quarantined, outcome.truncated) == (20, 2, 10)
    assert {row.reason for row in quarantine(job.table.uri).rows} == {"empty_text", "null_text"}
    found = stored(tmp_path / "table")
    for number, content in enumerate(CONTENT):
        row = found[f"r{number}"]
        histogram = np.bincount(np.frombuffer(content[:32], np.uint8), minlength=VALUES)
        np.testing.assert_allclose(row["embedding"], histogram / np.linalg.norm(histogram), atol=1e-6)
        assert row["tokens"] == min(len(content), 32)
        assert row["_hash"] == hashlib.blake2b(content, digest_size=16, person=b"toy").hexdigest()
    assert set(found["r0"]) == {"id", "embedding", "tokens", "_hash", "_shard"}

    write(tmp_path / "corpus", [CONTENT[1], *CONTENT[1:19], b"abc"])  # one moved, one new
    outcome = refresh(job)
    assert (outcome.rows, outcome.encoded) == (20, 1)
    assert stored(tmp_path / "table")["r0"]["embedding"] == found["r1"]["embedding"]

    (hits,) = Searcher(job.table.uri).search(["cab"], k=1)  # a question is a text
    assert hits[0].id == "r19"
    assert hits[0].score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary(3), pa.dictionary(pa.int8(), pa.binary()), pa.string()])
def test_any_column_whose_values_are_bytes_is_taken(tmp_path, kind):
    write(tmp_path / "corpus", [b"abc", b"abd"], kind)
    assert backfill(job_of(tmp_path)).rows == 2


def test_bytes_are_not_kept_as_texts(tmp_path):
    write(tmp_path / "corpus", [b"abc"])
    with pytest.raises(ConfigError, match="keep_text stores texts, and the model takes .*leave keep_text out"):
        estimate(job_of(tmp_path, table__keep_text=True), tokens_per_s=1.0)


def test_what_is_not_of_the_modality_is_refused_by_a_plan(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a"], "data": [1], "text": ["a"]}), folder / "0.parquet")
    with pytest.raises(ConfigError, match=r"source.text names 'data', which is int64 in .*; it must be bytes"):
        estimate(job_of(tmp_path))
    with pytest.raises(ConfigError, match="names 2 columns, and only texts are joined; the model takes toy_bytes"):
        estimate(job_of(tmp_path, source__text=["text", "data"]))
    with pytest.raises(ConfigError, match="chunking.mode split cuts texts, and .* is 'toy_bytes'. Leave chunking out"):
        estimate(job_of(tmp_path, source__text=["text"], chunking__mode="split"))
    write(folder, [b"abc"])
    with pytest.raises(ConfigError, match=r"source.text names 'data', which is binary in .*; it must be text"):
        estimate(job_of(tmp_path, encoder__model=str(write_bert(tmp_path / "bert"))))
