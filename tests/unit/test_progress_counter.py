"""Long operations increment the progress counter, so that the watchdog does not take a slow one for a hang."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import storage
from actors.encoders import describe
from actors.progress_counter import progress_count
from actors.schema import Piece
from actors.source.formats import FORMATS, Wanted, lines
from actors.source.formats.base import BATCH_ROWS
from actors.text import tokenizer
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import write_bert

ROWS = 8 * BATCH_ROWS
TEXTS = [f"text {number}" for number in range(40)]


def progress_of(work: Callable[[], object]) -> int:
    before = progress_count()
    work()
    return progress_count() - before


def test_seeking_in_a_row_group_counts_progress(tmp_path):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"text": [str(number) for number in range(ROWS)]}), path, row_group_size=ROWS)
    piece = Piece(storage.stat(str(path)), ROWS - 1, ROWS, 1)
    increments = progress_of(lambda: list(FORMATS["parquet"].read(piece, Wanted({"text": pa.string()}, ("text",)))))
    assert increments >= ROWS // BATCH_ROWS


def test_seeking_in_compressed_text_counts_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1000)
    rows = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(5000))
    path = tmp_path / "one.jsonl.gz"
    path.write_bytes(gzip.compress(rows))
    last = rows.rindex(b"\n", 0, -1) + 1
    piece = Piece(storage.stat(str(path)), last, len(rows), 1)
    increments = progress_of(lambda: list(FORMATS["jsonl"].read(piece, Wanted({"text": pa.string()}, ("text",)))))
    assert increments >= len(rows) // 1000


@pytest.mark.parametrize("whole", [False, True])
def test_tokenizing_many_texts_counts_progress_and_gives_the_same_ids(tmp_path, monkeypatch, whole):
    model = Tokenizer(describe(str(write_bert(tmp_path / "model"))))

    def ids() -> list[list[int]]:
        if whole:
            return [each.ids.tolist() for each in model.tokenize_whole(TEXTS)]
        return [each.as_py() for each in model.tokenize(TEXTS).ids]

    ids_of_one_call = ids()
    monkeypatch.setattr(tokenizer, "_CHARS_AT_ONCE", 20)
    ids_of_many_calls: list[list[int]] = []
    assert progress_of(lambda: ids_of_many_calls.extend(ids())) >= len(TEXTS) // 3
    assert ids_of_many_calls == ids_of_one_call


def test_each_retry_of_a_store_counts_progress(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    answers = [ConnectionResetError("cut"), TimeoutError("slow"), ConnectionResetError("cut")]

    def call() -> str:
        if answers:
            raise answers.pop()
        return "answer"

    assert progress_of(lambda: storage.retried("s3://bucket/key", "read", call)) == 4
