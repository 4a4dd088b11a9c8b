"""Held-out evaluation during a training: nDCG@10 against its formula, both sides with their task, and early stopping."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.errors import DataError
from actors.source.content_hash import content_hashes
from pipeline.train.evaluate import EarlyStopping, HeldOut, in_training, read_held_out


def files(folder, *, documents, queries, judgements):
    """Write the three files; return the settings that name them."""
    tables = {
        "corpus": pa.table({"id": [*documents], "text": [*documents.values()]}),
        "queries": pa.table({"id": [*queries], "text": [*queries.values()]}),
        "judgements": pa.table(dict(zip(("query", "doc", "relevance"), zip(*judgements, strict=True), strict=True))),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return SimpleNamespace(**{name: str(folder / f"{name}.parquet") for name in tables})


@pytest.fixture
def held_out(tmp_path) -> HeldOut:
    documents = {f"d{number}": f"document {number}" for number in range(12)}
    judgements = [("q0", "d3", 1), ("q1", "d0", 2), ("q1", "d5", 1)]
    return read_held_out(
        files(tmp_path, documents=documents, queries={"q0": "first", "q1": "second"}, judgements=judgements)
    )


def by_scores(scores):
    """An encoder for which document i has the score scores[query][i]: one axis for each document."""

    def encode(texts, side):
        return np.array(scores if side == "query" else np.eye(12), np.float32)

    return encode


def test_the_score_is_ndcg_at_10_of_graded_judgements(held_out):
    first = [0.0] * 12
    first[7], first[3] = 0.9, 0.8  # the answer is second
    second = [0.01 * number for number in range(12)]  # d5 is seventh, d0 is twelfth and does not count
    values = held_out.values(by_scores([first, second]), "a model")
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert values == pytest.approx([1 / math.log2(3), 1 / math.log2(8) / ideal])


def test_a_vector_that_is_not_finite_is_named(held_out):
    scores = np.ones((2, 12))
    scores[1, 4] = np.nan
    with pytest.raises(DataError, match=r"step 7: the vector of query 1 .* lower train\.learning_rate"):
        held_out.values(by_scores(scores), "step 7")


def test_hashes_are_those_of_the_queries_as_tables_store_them(held_out):
    wanted = content_hashes(pa.array(["first", "second"])).to_pylist()
    assert {digest.hex() for digest in held_out.text_hashes} == set(wanted)


def test_judged_documents_that_the_corpus_lacks_are_counted_or_refused(tmp_path):
    documents, queries = {"a": "one", "b": "two"}, {"q": "ask"}
    found = read_held_out(
        files(tmp_path, documents=documents, queries=queries, judgements=[("q", "a", 1), ("q", "z", 1)])
    )
    assert found.notes == ("1 judged documents are not in the corpus and cannot be found",)
    with pytest.raises(DataError, match="none of its documents is in the corpus"):
        read_held_out(files(tmp_path, documents=documents, queries=queries, judgements=[("q", "z", 1)]))


class Module(torch.nn.Module):
    """The interface of the module that trains: a vector is the text's length, its task and its first letter."""

    def __init__(self, tasks):
        super().__init__()
        self.tasks, self.calls = tasks, []
        base = SimpleNamespace(prompt="")
        self.twin = SimpleNamespace(spec=SimpleNamespace(prompt="", prompts={"q": "Query: "}, query_side=lambda: base))

    def preprocess(self, texts):
        self.calls += texts
        return {"input_ids": torch.tensor([[len(text), ord(text[0])] for text in texts])}

    def forward(self, features):
        assert (torch.is_grad_enabled(), self.training) == (False, False)
        found = torch.cat([features["input_ids"], features["task"][:, None]], dim=1)
        return {"sentence_embedding": found.float()}


class Model(torch.nn.Sequential):
    device = torch.device("cpu")


def test_each_side_is_encoded_with_its_task_and_prompt_in_the_given_order():
    model: Any = Model(Module(["q", "p"])).train()
    encode = in_training(model)
    texts = ["longer than the next", "b", "middle size"]
    assert encode(texts, "query").tolist() == [[len(text) + 7, ord("Q"), 0] for text in texts]
    assert encode(texts, "document").tolist() == [[len(text), ord(text[0]), 1] for text in texts]
    assert (model.training, model[0].training) == (True, True)


def test_without_adapters_both_sides_are_those_of_the_base():
    model: Any = Model(Module([]))
    encode = in_training(model)
    assert encode(["ab"], "query").tolist() == encode(["ab"], "document").tolist() == [[2, ord("a"), -1]]


def test_training_stops_after_so_many_scores_without_a_better_one():
    stopping = EarlyStopping(patience=2)
    found = [(stopping.update(step, score), stopping.is_best) for step, score in enumerate([0.5, 0.6, 0.6, 0.5])]
    assert found == [(False, True), (False, True), (False, False), (True, False)]
    assert (stopping.best, stopping.best_step) == (0.6, 1)


def test_a_resumed_training_stops_where_an_undisturbed_one_does():
    scores = [0.5, 0.4, 0.3, 0.45]
    whole, first = EarlyStopping(patience=3), EarlyStopping(patience=3)
    expected = [whole.update(step, score) for step, score in enumerate(scores)]
    found = [first.update(step, score) for step, score in enumerate(scores[:2])]
    resumed = EarlyStopping(patience=3)
    resumed.load_state_dict(first.state_dict())
    assert found + [resumed.update(step, scores[step]) for step in (2, 3)] == expected == [False, False, False, True]
    assert resumed == whole
