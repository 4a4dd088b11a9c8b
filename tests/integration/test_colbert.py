"""A model without a dense head: its dense column is an encoding of the others, of any length, and finds candidates."""

from __future__ import annotations

import numpy as np
from deltalake import DeltaTable

from actors.encoders import load_encoder
from actors.encoders.muvera import encode
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from tests.checkpoints import SENTENCES, write_jina_colbert_v2
from tests.integration.conftest import make_job, write_corpus

TEXTS = [f"{sentence} {number}" for number in range(3) for sentence in SENTENCES]


def rows_of(texts: list[str]) -> list[dict[str, object]]:
    return [{"id": f"r{number:02}", "text": text, "lang": "en"} for number, text in enumerate(texts)]


def test_encodings_are_stored_reused_and_searched_as_they_are(tmp_path):
    model = write_jina_colbert_v2(tmp_path / "model")
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS)])
    changes: dict[str, object] = {"source__text": ["text"], "run__unit_rows": 8, "encoder__outputs": ["dense", "multi"]}
    job = make_job(tmp_path / "corpus", tmp_path / "table", model, **changes)
    assert backfill(job).encoded == len(TEXTS)
    first = DeltaTable(job.table.uri).to_pyarrow_table().sort_by("id")
    many = load_encoder(str(model), outputs=("dense", "multi"), dtype="float32").encode_multi(TEXTS)
    expected = np.stack([encode(vectors, query=False) for vectors in many])
    assert np.linalg.norm(expected, axis=1).min() > 5
    stored = np.float32(first["embedding"].to_pylist())
    np.testing.assert_allclose(stored, expected, atol=0.02)
    assert first["embedding_multi_n"].to_pylist() == [len(vectors) for vectors in many]

    write_corpus(tmp_path / "corpus", [rows_of([*TEXTS[:-1], "another text"])])
    assert refresh(job).encoded == 1
    second = DeltaTable(job.table.uri).to_pyarrow_table().sort_by("id")
    assert second.slice(0, len(TEXTS) - 1)["embedding"].equals(first.slice(0, len(TEXTS) - 1)["embedding"])

    searcher = Searcher(job.table.uri)
    questions = [SENTENCES[0], "the dog sleeps", "2", "1999", "fox"]
    queries = [encode(vectors, query=True) for vectors in searcher.encoder.encode_multi(questions)]
    scores = np.stack(queries) @ np.float32(second["embedding"].to_pylist()).T
    for hits, of_rows in zip(searcher.search(questions, k=3), scores, strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(of_rows)[::-1][:3], rtol=1e-5)
