"""Backfills with chunking, with real Ray, a real model and a real Delta table."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from actors.encoders import describe, load_encoder
from actors.errors import ConfigError, TableConflict
from actors.inputs import load_preparer
from actors.schema import HASH, ID, POSITION, SHARD
from actors.source.read_unit import SourceSpec
from actors.text.chunks import resolve
from actors.unit.unit_batch import UnitBatch, pack, unpack
from actors.unit.writer import WriterSpec, table_schema
from pipeline.execute.stages.encode import EncodeStage
from pipeline.execute.stages.spec import StageSpec
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.run.estimate import estimate
from pipeline.search.search import Searcher
from pipeline.table.status import status
from tests.integration.conftest import Stopping, Stops, make_job, write_corpus


def documents(count: int, *, start: int = 0) -> list[dict[str, object]]:
    """Documents of one to five sentences; the model's limit is 64 tokens, and each letter is a token."""
    texts = []
    for number in range(start, start + count):
        sentence = f"Line {number} of a text, it has no end 😀 yet. "
        texts.append(sentence * (1 + number % 5) + ("\n\n你好。再见" if number % 2 else ""))
    return [{"id": f"d{start + i}", "text": text, "lang": f"l{i % 2}"} for i, text in enumerate(texts)]


def job_for(corpus, table, model, **changes):
    return make_job(corpus, table, model, **{"source__text": ["text"], "run__unit_rows": 8, **changes})


def stored(table):
    """Return the rows of each id, in order of their chunks."""
    table_rows = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    table_rows.sort(key=lambda row: (row["id"], row["chunk"]))
    return {key: list(group) for key, group in groupby(table_rows, key=lambda row: row["id"])}


@pytest.mark.parametrize("mode", [pytest.param("late", marks=pytest.mark.ray), "split"])
def test_every_document_is_stored_in_chunks_that_slice_its_text(tmp_path, tiny_model, reporter, mode):
    source = documents(30)
    corpus = write_corpus(tmp_path / "corpus", [source[:20], source[20:]])
    job = job_for(
        corpus,
        tmp_path / "table",
        tiny_model,
        chunking__mode=mode,
        chunking__max_tokens=40,
        table__precision="float32",
        run__address="local" if mode == "late" else "inline",
    )
    outcome = backfill(job, reporter)
    chunks_of = stored(tmp_path / "table")
    assert (outcome.rows_read, outcome.documents, outcome.quarantined, outcome.truncated) == (30, 30, 0, 0)
    assert outcome.rows == sum(len(chunks) for chunks in chunks_of.values()) > 60
    assert outcome.units > 1
    assert outcome.tokens == sum(chunk["tokens"] for chunks in chunks_of.values() for chunk in chunks)
    encoder = load_encoder(str(tiny_model), dtype="float32")
    expected = encoder.encode_chunks([str(row["text"]) for row in source], mode=mode, max_tokens=40)
    for row, chunks in zip(source, expected, strict=True):
        table_chunks = chunks_of[str(row["id"])]
        assert [chunk["chunk"] for chunk in table_chunks] == list(range(len(chunks)))
        text = str(row["text"])
        assert "".join(text[chunk["start"] : chunk["end"]] for chunk in table_chunks) == text
        assert {chunk["lang"] for chunk in table_chunks} == {row["lang"]}
        for stored_chunk, chunk in zip(table_chunks, chunks, strict=True):
            assert (stored_chunk["start"], stored_chunk["end"]) == (chunk.start, chunk.end)
            assert stored_chunk["tokens"] == chunk.tokens
            np.testing.assert_allclose(stored_chunk["embedding"], chunk.vector, atol=1e-5)
    assert [str(field.type) for field in DeltaTable(str(tmp_path / "table")).to_pyarrow_table().schema][1:4] == [
        "int32"
    ] * 3


def test_without_chunking_truncated_documents_are_counted(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [documents(10)])
    outcome = backfill(job_for(corpus, tmp_path / "table", tiny_model, chunking__mode="none"), reporter)
    assert (outcome.rows, outcome.documents, outcome.truncated) == (10, 10, 6)
    table = DeltaTable(str(tmp_path / "table")).to_pyarrow_table()
    assert "chunk" not in table.column_names
    assert max(table["tokens"].to_pylist()) == 64


def test_a_stopped_run_resumes_and_chunks_nothing_twice(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [documents(32)])
    job = job_for(corpus, tmp_path / "table", tiny_model, chunking__mode="late", chunking__max_tokens=30)

    with pytest.raises(Stops):
        backfill(job, Stopping())
    (run,) = status(str(tmp_path / "table")).runs
    before = Ledger(str(tmp_path / "table"), run.run).receipts()
    outcome = backfill(job, reporter)
    assert {receipt.unit for receipt in reporter.receipts} == set(range(outcome.units)) - set(before)
    chunks_of = stored(tmp_path / "table")
    assert chunks_of.keys() == {f"d{n}" for n in range(32)}
    assert all([chunk["chunk"] for chunk in chunks] == list(range(len(chunks))) for chunks in chunks_of.values())
    assert not backfill(job, reporter).published


def test_several_text_columns_are_chunked_as_the_joined_text(tmp_path, tiny_model, reporter):
    row: dict[str, object] = {"id": "a", "title": "A title", "text": "First one is here. Second is there.", "lang": "x"}
    corpus = write_corpus(tmp_path / "corpus", [[row]])
    job = make_job(corpus, tmp_path / "table", tiny_model, chunking__mode="late", chunking__max_tokens=20)
    backfill(job, reporter)
    joined = f"{row['title']}\n\n{row['text']}"
    chunks = [joined[chunk["start"] : chunk["end"]] for chunk in stored(tmp_path / "table")["a"]]
    assert chunks == ["A title\n\n", "First one is here. ", "Second is there."]


def test_all_chunks_of_a_duplicate_id_in_another_unit_are_removed(tmp_path, tiny_model, reporter):
    source = documents(16)
    source[12] = {**source[12], "id": "d4"}
    corpus = write_corpus(tmp_path / "corpus", [source])
    changes = {"chunking__mode": "late", "chunking__max_tokens": 30, "run__max_quarantined": 0.2}
    outcome = backfill(job_for(corpus, tmp_path / "table", tiny_model, **changes), reporter)
    assert (outcome.rows_read, outcome.documents, outcome.quarantined) == (16, 15, 1)
    chunks_of = stored(tmp_path / "table")
    assert chunks_of.keys() == {f"d{n}" for n in range(16)} - {"d12"}
    text = str(source[4]["text"])
    assert "".join(text[chunk["start"] : chunk["end"]] for chunk in chunks_of["d4"]) == text
    ledger = Ledger(str(tmp_path / "table"), outcome.run)
    quarantined = ledger.quarantine(ledger.receipts().values())
    assert quarantined is not None
    assert [(row["id"], row["reason"]) for row in quarantined.to_pylist()] == [("d4", "duplicate_id")]


def test_a_search_hit_has_the_chunk_and_its_offsets(tmp_path, tiny_model, reporter):
    source = documents(12)
    corpus = write_corpus(tmp_path / "corpus", [source])
    job = job_for(corpus, tmp_path / "table", tiny_model, chunking__mode="split", chunking__max_tokens=40)
    backfill(job, reporter)
    expected = stored(tmp_path / "table")["d7"][1]
    question = str(source[7]["text"])[expected["start"] : expected["end"]]
    ((hit, *_),) = Searcher(str(tmp_path / "table")).search([question], k=3, where="chunk > 0")
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    assert (hit.id, hit.columns["chunk"], hit.columns["start"], hit.columns["end"]) == (
        "d7",
        1,
        expected["start"],
        expected["end"],
    )


def test_chunking_settings_are_part_of_the_embedding_spec(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [documents(4)])
    late = {"chunking__mode": "late", "chunking__max_tokens": 30}
    backfill(job_for(corpus, tmp_path / "table", tiny_model, **late), reporter)
    lineage = Searcher(str(tmp_path / "table")).lineage
    assert {key: lineage[key] for key in lineage if key.startswith("chunk") and key != "chunk_rules"} == {
        "chunking": "late",
        "chunk_max_tokens": 30,
        "chunk_by": "sentence",
        "chunk_overlap_tokens": 15,
    }
    assert str(lineage["chunk_rules"]).startswith("icu-")
    with pytest.raises(TableConflict, match="chunk_max_tokens: 30 in the table, 31 in the job"):
        backfill(job_for(corpus, tmp_path / "table", tiny_model, **{**late, "chunking__max_tokens": 31}), reporter)
    with pytest.raises(TableConflict, match="chunking: 'late' in the table, None in the job"):
        backfill(job_for(corpus, tmp_path / "table", tiny_model), reporter)


def test_chunking_that_the_model_does_not_support_fails_before_the_run(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [documents(4)])
    job = job_for(corpus, tmp_path / "table", tiny_model, chunking__mode="split", chunking__max_tokens=63)
    with pytest.raises(ConfigError, match=r"max_tokens 63 does not fit: .* leaves 62 to a chunk"):
        backfill(job, reporter)
    assert not (tmp_path / "table").exists()


def test_a_dry_run_with_chunking_truncates_nothing(tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [documents(20)])
    plain = estimate(job_for(corpus, tmp_path / "a", tiny_model), tokens_per_s=1e3)
    late = estimate(
        job_for(corpus, tmp_path / "a", tiny_model, chunking__mode="late", chunking__max_tokens=30), tokens_per_s=1e3
    )
    assert plain.truncated_share > 0
    assert late.truncated_share == 0
    assert late.tokens > plain.tokens
    assert late.output_bytes > 2 * plain.output_bytes


class NoDeaths:
    """An attempt log without deaths, which is also its own attempt."""

    watched = False

    def attempt(self, stage, unit):
        return self

    def check(self):
        pass

    def verdict(self, span):
        return None

    def suspect(self, span):
        return False

    def trying(self, span):
        return nullcontext()

    def done(self):
        pass


class RaisingFamily:
    """A model family that raises on every micro-batch with a certain token."""

    def __init__(self, family, token):
        self.family = family
        self.token = token

    def forward(self, batch):
        if (batch.ids == self.token).any():
            raise RuntimeError("the model cannot encode this token")
        return self.family.forward(batch)


@pytest.mark.parametrize("mode", ["late", "split"])
def test_only_the_document_that_cannot_be_encoded_is_quarantined(tiny_model, mode):
    spec = describe(str(tiny_model), dtype="float32")
    chunking = resolve(spec, mode=mode, max_tokens=30)
    assert chunking is not None
    texts = [str(row["text"]) for row in documents(9)]
    texts[4] = texts[4][:100] + "q" + texts[4][100:]
    texts[7] = texts[4]  # an equal text is encoded once, and both rows are quarantined
    texts[8] = texts[3]
    names = [f"d{number}" for number in range(9)]
    inputs = load_preparer(spec, chunking).prepare(pa.chunked_array([texts])).rows
    table = pa.table({ID: names, HASH: texts, SHARD: ["s"] * 9, POSITION: list(range(9))})
    schema = table_schema(pa.schema([]), spec.outputs, chunked=True)
    writer = WriterSpec("t", "l", "r", schema, (), "float32", "{}", spec.outputs)
    stage = EncodeStage(StageSpec(SourceSpec("jsonl", "/"), spec, writer, chunking), NoDeaths(), 1, "cpu")  # type: ignore[arg-type]
    q = stage.encoder.tokenizer.tokenize(["q"]).ids[0].as_py()[1]
    expected = [chunk for i, text in enumerate(texts) if i not in (4, 7) for chunk in one(stage.encoder, text, mode)]
    stage.encoder.family = RaisingFamily(stage.encoder.family, q + 36)  # the token of "q" inside a word

    batch = unpack(stage(pack(UnitBatch(0, table, inputs, rows_read=9, counts={"documents": 9}))))
    assert batch.error is None
    assert [(row.id, row.position, row.reason) for row in batch.bad] == [
        ("d4", 4, "encode_failed"),
        ("d7", 7, "encode_failed"),
    ]
    assert batch.counts["documents"] == 7
    assert batch.table is not None
    rows = batch.table.to_pylist()
    assert [row["id"] for row in rows if row["chunk"] == 0] == [name for name in names if name not in ("d4", "d7")]
    assert [(row["start"], row["end"]) for row in rows] == [(chunk.start, chunk.end) for chunk in expected]
    np.testing.assert_allclose([row["embedding"] for row in rows], [chunk.vector for chunk in expected], atol=1e-5)


def one(encoder, text, mode):
    return encoder.encode_chunks([text], mode=mode, max_tokens=30)[0]
