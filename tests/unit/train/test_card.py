"""The model card: what was trained on what, what it is worth, and licences as others state them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from actors.encoders import describe
from pipeline.job.training import parse_training
from pipeline.quality.bootstrap import mean_difference, mean_interval
from pipeline.train.card import licence_of, model_card
from pipeline.train.data import Source, TrainingData
from pipeline.train.evaluate import Comparison
from tests.checkpoints import write_bert


@pytest.fixture
def base(tmp_path) -> Path:
    folder = write_bert(tmp_path / "base", layers=1, hidden=16)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def card_of(base: Path, *, licence: str | None = None, adapters=(), comparison=None, revision=None, **train) -> str:
    pairs = base.parent / "pairs"
    pairs.mkdir()
    pq.write_table(pa.table({"query": ["q"], "passage": ["p"]}), pairs / "one.parquet")
    if licence is not None:
        (pairs / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    document = {
        "train": {"model": str(base), **train},
        "data": [{"uri": str(pairs), "where": "kept"}],
        "out": {"uri": "out/legal"},
    }
    data = TrainingData(
        (Source("pairs", pairs, 1.0, "infonce", 7, 1234),),
        pairs,
        "",
        {"pairs": {"kept": 1234, "padded negatives": 5, "blank": 0}},
    )
    spec = describe(str(base))
    if revision is not None:
        spec = replace(spec, model="org/model", revision=revision)
    places = {name: f"out/legal/{name}" for name in adapters}
    return model_card(parse_training(document), spec, data, steps=40, adapters=places, comparison=comparison)


def head(card: str) -> Any:
    return yaml.safe_load(card.split("---")[1])


def block(card: str, language: str) -> str:
    return card.split(f"```{language}\n")[1].split("```", maxsplit=1)[0]


def test_a_card_names_base_data_result_and_settings(base):
    before, after = np.array([0.0, 1.0, 0.5, 0.5]), np.array([0.5, 1.0, 1.0, 0.5])
    comparison = Comparison(mean_interval(before), mean_interval(after), mean_difference(after, before), 4, 900)
    card = card_of(base, licence="cc0-1.0", adapters=["legal"], comparison=comparison, task="legal", learning_rate=1e-4)
    assert head(card) | {"tags": None} == {
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "sentence-similarity",
        "tags": None,
    }
    assert "of 4 held-out queries among 900 documents" in card
    assert f"| {comparison.before} | {comparison.after} | {comparison.difference} |" in card
    assert str(comparison).startswith("nDCG@10 before 0.5000 after 0.7500 [+0.")
    assert "| 1,234 | infonce | 7 | 1 | 5 padded negatives | cc0-1.0 |" in card
    assert "where `kept`" in card
    assert "| `train.learning_rate` | `0.0001` |" in card
    assert f"| none: a folder | apache-2.0 | `{describe(str(base)).weights_sha256}` |" in card
    encoder = yaml.safe_load(block(card, "yaml"))["encoder"]
    assert encoder == {"model": str(base), "task": "legal", "adapters": {"legal": "out/legal/legal"}}
    assert 'model.load_adapter("out/legal/legal", "legal")' in block(card, "python")


def test_a_card_of_a_pair_puts_the_adapter_of_queries_beside_that_of_passages(base):
    card = card_of(base, adapters=["ask", "answer"], task=["ask", "answer"])
    encoder = yaml.safe_load(block(card, "yaml"))["encoder"]
    assert encoder["task"] == "answer"
    assert encoder["adapters"] == {"answer": {"path": "out/legal/answer", "query_path": "out/legal/ask"}}
    assert [line.partition("  #")[0] for line in block(card, "python").splitlines()[-2:]] == [
        'model.set_adapter("ask")',
        'model.set_adapter("answer")',
    ]


def test_a_card_names_a_folder_so_that_every_place_finds_it(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    card = card_of(Path("base"), adapters=["legal"], task="legal")
    assert yaml.safe_load(block(card, "yaml"))["encoder"]["model"] == str(base)


def test_a_card_says_the_length_and_the_dimensions_that_were_trained(base):
    card = card_of(base, adapters=["legal"], task="legal", max_tokens=48, matryoshka=[16, 8, 4])
    assert yaml.safe_load(block(card, "yaml"))["encoder"]["max_tokens"] == 48
    assert "model.max_seq_length = 48" in block(card, "python")
    assert "as trained: 8, 4. Set `encoder.dim`" in card


def test_a_card_of_a_whole_model_without_measures_and_licences_says_so(base):
    (base / "README.md").unlink()
    card = card_of(base, method="full")
    assert "license" not in head(card)
    assert head(card)["library_name"] == "sentence-transformers"
    assert "named no held-out data" in card
    assert card.count("not stated") == 2
    here = str(Path("out/legal/model").absolute())
    assert yaml.safe_load(block(card, "yaml")) == {"encoder": {"model": here}}
    assert block(card, "python").splitlines()[-1] == f'model = SentenceTransformer("{here}")'


def test_the_card_names_a_base_of_the_hub_by_its_id(base, monkeypatch):
    monkeypatch.setattr("pipeline.train.card.resolve", lambda *_: (base, "abc"))  # it is not downloaded
    card = card_of(base, revision="abc", method="full")
    assert (head(card)["base_model"], head(card)["base_model_relation"]) == ("org/model", "finetune")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\nlicense: mit", "not stated"),
        ("# A model\n---\nlicense: mit\n---\n", "not stated"),
        ("---\n: [broken\n---\n", "not stated"),
        ("", "not stated"),
    ],
)
def test_a_licence_is_what_the_card_states(card, licence):
    assert licence_of(card) == licence
