"""Batches of token ids: those of the encoder, with prompts, adapters, hashes and labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.encoders import describe
from actors.inputs import load_preparer
from actors.source.content_hash import content_hashes
from pipeline.train.collate import Collator, Rows, padded
from pipeline.train.prompts import prompts_of
from tests.checkpoints import SENTENCES, write_bert, write_jina_v3
from tests.unit.train.sources import prepared


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return describe(str(write_bert(tmp_path_factory.mktemp("bert"))), max_tokens=12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 6), ("b", 5)):
        rows = {"query": [f"{name} {row}" for row in range(count)], "passage": SENTENCES[:count]}
        rows["negative"] = [f"no {' x' * row}" for row in range(count)]
        pq.write_table(pa.table({**rows, "score": np.arange(count) / 4}), folder / f"{name}.parquet")
    sources = [{"uri": str(folder / "a.parquet")}, {"uri": str(folder / "b.parquet"), "loss": "cosent"}]
    return prepared(folder / "data", *sources)


def rows_of(batch, column):
    """The ids of each text without padding."""
    pairs = zip(batch[f"{column}_input_ids"], batch[f"{column}_attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def encoder_ids(spec, texts):
    return load_preparer(spec).prepare(pa.chunked_array([pa.array(texts, pa.string())])).rows["_input_ids"].to_pylist()


def test_a_text_has_the_ids_that_the_encoder_gives_it(spec, data):
    batch = Collator(spec, ["legal"])(Rows(data.sources).__getitems__([5, 0, 3]))
    texts = {"query": ["a 5", "a 0", "a 3"], "passage": [SENTENCES[row] for row in (5, 0, 3)]}
    texts["negative_1"] = [f"no {' x' * row}" for row in (5, 0, 3)]
    for column, expected in texts.items():
        assert rows_of(batch, column) == encoder_ids(spec, expected)
        digests = [bytes.fromhex(each)[:8] for each in content_hashes(pa.array(expected)).to_pylist()]
        assert [each.to_bytes(8, "little", signed=True) for each in batch[f"{column}_text_hash"].tolist()] == digests
        assert batch[f"{column}_task"].tolist() == [0, 0, 0]
    assert max(map(len, rows_of(batch, "passage"))) == 12  # cut
    assert batch["dataset_name"] == "a"
    assert "label" not in batch
    assert [key for key in batch if key.endswith("_input_ids")] == [f"{column}_input_ids" for column in texts]


def test_rows_are_numbered_through_the_sources(spec, data):
    rows = Rows(data.sources)
    assert len(rows) == 11
    batch = Collator(spec, [])(rows.__getitems__([6, 10]))
    assert batch["dataset_name"] == "b"
    assert batch["label"].tolist() == [0.0, 1.0]
    assert batch["label"].dtype == torch.float32
    assert batch["query_task"].tolist() == [-1, -1]
    assert rows_of(batch, "query") == encoder_ids(spec, ["b 0", "b 4"])
    assert "negative_1_input_ids" not in batch


def test_each_side_has_its_prompt_and_its_adapter(spec, data):
    spec = replace(spec, tasks=("ask", "answer"), prompts={"ask": "q: ", "answer": "p: "})
    batch = Collator(spec, ["ask", "answer"])(Rows(data.sources).__getitems__([1]))
    plain = replace(spec, prompt="")
    assert rows_of(batch, "query") == encoder_ids(plain, ["q: a 1"])
    assert rows_of(batch, "passage") == encoder_ids(plain, ["p: " + SENTENCES[1]])
    assert rows_of(batch, "negative_1") == encoder_ids(plain, ["p: no  x"])
    assert [batch[f"{column}_task"].item() for column in ("query", "passage", "negative_1")] == [0, 1, 1]


def test_prompts_are_those_of_the_tasks_or_of_the_model(spec, tmp_path):
    assert prompts_of(spec, ["legal"]) == ("", "")
    v3 = describe(str(write_jina_v3(tmp_path)), task="retrieval.passage")
    published = (v3.prompts["retrieval.query"], v3.prompts["retrieval.passage"])
    assert all(published)
    assert prompts_of(v3, ["retrieval.query", "retrieval.passage"]) == published
    assert prompts_of(v3, ["text-matching"]) == ("", "")
    assert prompts_of(v3, ["legal"]) == published
    assert prompts_of(v3, []) == published
    sides = replace(spec, prompts={"legal.query": "Query: ", "legal.passage": "Passage: "})
    assert prompts_of(sides, ["legal"]) == ("Query: ", "Passage: ")


def test_padding_is_masked():
    ids, mask = padded(pa.array([[5, 6, 7], [], [8]], pa.list_(pa.int32())))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
