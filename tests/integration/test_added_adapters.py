"""Tests of jobs with LoRA adapters that PEFT wrote: by task and by row, re-embedding, rollback, search, refused jobs."""

from __future__ import annotations

import shutil
import warnings
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable
from peft import LoraConfig, get_peft_model
from transformers import JinaEmbeddingsV3Model

from actors import storage
from actors.encoders import load_encoder
from actors.errors import ConfigError, GateClosed, ModelError, TableConflict
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.versions import rollback
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3, write_peft
from tests.integration.conftest import make_job, rows, write_corpus
from tests.unit.encoders.jina_v3_oracle import Oracle

LAW, QUERY = "Law: ", "Which law: "


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write_jina_v3(tmp_path_factory.mktemp("v3"), layout="native")


@pytest.fixture(scope="module")
def trained(v3, tmp_path_factory):
    """Folders of two adapters for the model and of one for a wider model."""
    root = tmp_path_factory.mktemp("trained")
    wide = write_jina_v3(tmp_path_factory.mktemp("wide"), layout="native", hidden=48, dims=(48,))
    for seed, (name, base) in enumerate({"legal": v3, "other": v3, "wide": wide}.items()):
        torch.manual_seed(seed)
        settings = LoraConfig(init_lora_weights=False, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc2"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            model = get_peft_model(JinaEmbeddingsV3Model.from_pretrained(base), settings)
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", [rows(30)])


@pytest.fixture
def make(tmp_path, corpus, v3):
    """Makes jobs over the same corpus, table and model."""
    return partial(make_job, corpus, tmp_path / "table", v3)


def legal(trained, name="legal", **settings):
    return {"encoder__adapters": {"legal": {"path": str(trained / name), **settings}}, "encoder__task": "legal"}


def vectors_of(table, version=None):
    stored = DeltaTable(str(table), version=version).to_pyarrow_table(columns=["id", "embedding"]).to_pylist()
    return {row["id"]: np.array(row["embedding"], dtype=np.float32) for row in stored}


def from_peft(v3, trained, texts, task, **folders):
    """Vectors as transformers and PEFT compute them."""
    ids = load_encoder(str(v3), dtype="float32").tokenizer.tokenize(texts, [None] * len(texts)).ids.to_pylist()
    return Oracle(v3, **{name: trained / folder for name, folder in folders.items()}).vectors(ids, [task] * len(texts))


def text_of(row):
    return f"{row['title']}\n\n{row['text']}"


def test_an_adapter_is_added_behind_the_gate_searched_and_taken_back(tmp_path, make, v3, trained, reporter):
    table = tmp_path / "table"
    base = make(encoder__task="retrieval.passage")
    backfill(base, reporter)
    before = vectors_of(table)
    added = legal(trained, prompt=LAW, query_prompt=QUERY)
    with pytest.raises(TableConflict, match="adapter_sha256: None in the table, '[0-9a-f]{64}' in the job"):
        backfill(make(**added), reporter)
    with pytest.raises(GateClosed, match="readers stay on version 1"):
        refresh(make(**added, generation__min_agreement=1.0), reporter)
    outcome = refresh(make(**added, generation__min_agreement=0.0), reporter)
    assert (outcome.version, outcome.rows, outcome.published) == (2, 30, True)

    stored = vectors_of(table)
    expected = from_peft(v3, trained, [LAW + text_of(row) for row in rows(30)], "legal", legal="legal")
    for row, vector in zip(rows(30), expected, strict=True):
        np.testing.assert_allclose(stored[row["id"]], vector, atol=1e-3)

    question = "text number 3"
    (query,) = from_peft(v3, trained, [QUERY + question], "legal", legal="legal")
    (hits,) = Searcher(str(table)).search([question], k=30)
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ stored[hit.id]), abs=2e-3)

    rollback(str(table), to=1)
    assert refresh(base, reporter).published is False
    assert all(np.array_equal(before[name], vector) for name, vector in vectors_of(table).items())
    assert Searcher(str(table)).spec.task == "retrieval.query"
    again = refresh(make(**added), reporter)
    assert (again.published, again.encoded) == (True, 0)


def test_rows_name_adapters_beside_tasks_of_the_model(tmp_path, v3, trained, reporter):
    tasks = ["legal", "separation", None, "legal.query", "other"]
    source = [{**row, "task": tasks[number % 5]} for number, row in enumerate(rows(25))]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(source), tmp_path / "corpus" / "a.parquet")
    adapters = {"legal": {"path": str(trained / "legal"), "prompt": LAW, "query_prompt": QUERY}}
    settings = {"source__task_column": "task", "run__max_quarantined": 0.2, "encoder__task": "classification"}
    job = make_job(tmp_path / "corpus", tmp_path / "table", v3, encoder__adapters=adapters, **settings)
    outcome = backfill(job, reporter)
    assert (outcome.rows, outcome.quarantined) == (20, 5)
    ledger = Ledger(outcome.table, outcome.run)
    (error,) = {row["error"] for row in ledger.quarantine(ledger.receipts().values()).to_pylist()}
    assert error.startswith("the model has no task 'other'; its tasks are retrieval.query, retrieval.passage, ")
    assert error.endswith(", text-matching, legal, legal.query")
    stored = vectors_of(tmp_path / "table")
    prompts = {"legal": (LAW, "legal"), "legal.query": (QUERY, "legal"), None: ("", "classification")}
    for task in tasks[:4]:
        prompt, adapter = prompts.get(task, ("", task))
        chosen = [row for row in source if row["task"] == task]
        expected = from_peft(v3, trained, [prompt + text_of(row) for row in chosen], adapter, legal="legal")
        for row, vector in zip(chosen, expected, strict=True):
            np.testing.assert_allclose(stored[row["id"]], vector, atol=1e-3)
    # The table's own task needs no adapter, so a search does not read any.
    assert Searcher(str(tmp_path / "table")).spec.adapters == ()
    said = (
        "for the task 'classification', which has no added adapter; its rows name their tasks, legal among them. Leave"
    )
    with pytest.raises(ConfigError, match=said):
        Searcher(str(tmp_path / "table"), adapter=str(trained / "legal"))
    for name, other in (("other", {"path": str(trained / "other")}), ("legal", {**adapters["legal"], "prompt": ""})):
        changed = make_job(
            tmp_path / "corpus", tmp_path / "table", v3, encoder__adapters={**adapters, name: other}, **settings
        )
        with pytest.raises(TableConflict, match="adapters: "):
            backfill(changed, reporter)


def test_the_content_of_an_adapter_is_in_the_fingerprint_and_its_place_is_not(tmp_path, make, trained):
    def fingerprint(**changes):
        return estimate(make(**changes), tokens_per_s=1.0).fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(trained / "legal", copy)
    one = fingerprint(**legal(trained))
    assert fingerprint(**legal(tmp_path, "copy")) == one
    assert fingerprint(encoder__adapters={"legal": f"file://{copy}"}, encoder__task="legal") == one
    others = [
        fingerprint(encoder__task="separation"),
        fingerprint(**legal(trained, "other")),
        fingerprint(**legal(trained, prompt=LAW)),
        fingerprint(**legal(trained, query_prompt=QUERY)),
    ]
    assert len({one, *others}) == 5
    shutil.copytree(trained / "other", copy, dirs_exist_ok=True)
    assert fingerprint(**legal(tmp_path, "copy")) == fingerprint(**legal(trained, "other"))


def test_a_table_without_adapters_is_described_as_before(tmp_path, make, reporter):
    backfill(make(encoder__task="separation"), reporter)
    spec = delta_table.embedding_spec_of(DeltaTable(str(tmp_path / "table")))
    assert spec is not None
    assert set(spec.encoder) == {"model", "revision", "task", "dim", "max_tokens", "dtype", "allow_untrained_dim"}
    assert not any("adapter" in key for key in spec.lineage)


def test_a_search_takes_the_new_place_of_an_adapter(tmp_path, make, trained, reporter):
    table = tmp_path / "table"
    shutil.copytree(trained / "legal", tmp_path / "legal")
    backfill(make(**legal(tmp_path)), reporter)
    before = Searcher(str(table)).search(["text number 3"])
    (tmp_path / "legal").rename(tmp_path / "moved")
    moved = "adapter 'legal': its path .*legal' is neither a directory.* If it has moved, .* new place with --adapter"
    with pytest.raises(ModelError, match=moved):
        Searcher(str(table))
    assert Searcher(str(table), adapter=str(tmp_path / "moved")).search(["text number 3"]) == before
    with pytest.raises(ModelError, match=r"other' is not the adapter that encoded .* the right one with --adapter"):
        Searcher(str(table), adapter=str(trained / "other"))
    backfill(make(encoder__task="separation", table__uri=str(tmp_path / "plain")), reporter)
    with pytest.raises(ConfigError, match="'separation', which has no added adapter. Leave --adapter out"):
        Searcher(str(tmp_path / "plain"), adapter=str(trained / "legal"))


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "its path .*nowhere' is neither a directory on this machine nor a hub id"),
        ("a-list", r"a-list/adapter_config.json is '\[\]', not a JSON object"),
        ("", "is not an adapter: it needs adapter_config.json and adapter_model.safetensors"),
        ("wide", r"/trained0/wide has .* of shape \[48, 4\]; rank 4 .* Use an adapter made for this model"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_when_planned(make, trained, folder, message):
    shutil.copytree(trained / "legal", trained / "a-list", dirs_exist_ok=True)
    (trained / "a-list" / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=f"adapter 'legal': .*{message}"):
        estimate(make(**legal(trained, folder)))


def test_an_adapter_at_a_url_is_named_by_its_url(make, trained):
    for folder, message in (("nowhere", "is not an adapter"), ("wide", r"has .* of shape \[48, 4\]")):
        url = f"file://{trained / folder}"
        with pytest.raises(ModelError, match=f"adapter 'legal': {url} {message}"):
            estimate(make(encoder__adapters={"legal": url}, encoder__task="legal"))


def test_names_of_tasks_are_refused_for_adapters(make, trained):
    for name, adapter in (
        ("separation", str(trained / "legal")),
        ("retrieval", {"path": str(trained / "legal"), "query_prompt": QUERY}),
    ):
        job = make(encoder__adapters={name: adapter}, encoder__task=name)
        with pytest.raises(ConfigError, match=rf"adapter '{name}': '{name}.*' is a task of .* already.*another name"):
            estimate(job)


def test_a_pair_of_adapters_encodes_texts_and_questions(make, tmp_path, v3, trained, reporter):
    shutil.copytree(trained / "other", tmp_path / "other")
    pair = legal(trained, query_path=str(tmp_path / "other"))
    table = backfill(make(**pair), reporter).table
    stored, question = vectors_of(tmp_path / "table"), "text number 3"
    (expected,) = from_peft(v3, trained, [text_of(rows(30)[0])], "legal", legal="legal")
    np.testing.assert_allclose(stored[rows(30)[0]["id"]], expected, atol=1e-3)
    (query,) = from_peft(v3, trained, [question], "asks", asks="other")
    (hits,) = Searcher(table).search([question], k=30)
    for hit in hits:
        assert hit.score == pytest.approx(float(query @ stored[hit.id]), abs=2e-3)
    with pytest.raises(TableConflict, match="query_adapter_sha256"):
        backfill(make(**legal(trained, query_path=str(trained / "legal"))), reporter)
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(ModelError, match=r"adapter 'legal\.query': its path .* Check the path"):
        Searcher(table)
    with pytest.raises(ConfigError, match="adapters.legal.query_path is .*a folder of this machine"):
        estimate(
            make(
                **{**pair, "encoder__adapters": {"legal": {"path": "s3://a/b", "query_path": "./q"}}},
                run__address="ray://10.0.0.1:10001",
            )
        )


def test_a_model_without_lora_names_those_with_it(tmp_path, make, trained):
    job = make(encoder__model=str(write_jina_v1(tmp_path / "model")), encoder__dtype="float32", **legal(trained))
    with pytest.raises(ConfigError, match="takes no LoRA adapters; BERT-like models and Jina v2, v3 and v4 do"):
        estimate(job)


@pytest.mark.parametrize(("write", "width"), [(write_bert, 32), (write_jina_v2, 48)])
def test_a_small_model_takes_an_adapter_behind_the_gate(tmp_path, make, reporter, write, width):
    model = str(write(tmp_path / "model", layers=1))
    stem = "base_model.model.encoder.layer.0.attention.self.query.lora"
    factors = {f"{stem}_A.weight": torch.ones(2, width), f"{stem}_B.weight": torch.randn(width, 2)}
    adapter = str(write_peft(tmp_path / "legal", factors, r=2))
    legal = {"encoder__adapters": {"legal": adapter}, "encoder__task": "legal"}
    base = {"encoder__model": model, "encoder__dtype": "float32"}
    backfill(make(**base), reporter)
    with pytest.raises(GateClosed, match="readers stay on version 1"):
        refresh(make(**base, **legal, generation__min_agreement=1.0), reporter)
    assert refresh(make(**base, **legal, generation__min_agreement=0.0), reporter).published
    encoder = load_encoder(model, dtype="float32")
    encoder.adapters.load("legal", tmp_path / "legal")
    expected = encoder.encode([text_of(row) for row in rows(30)], task="legal")
    stored = vectors_of(tmp_path / "table")
    for row, vector in zip(rows(30), expected, strict=True):
        np.testing.assert_allclose(stored[row["id"]], vector, atol=1e-3)
    (hits,) = Searcher(str(tmp_path / "table")).search([text_of(rows(30)[3])], k=1)
    assert (hits[0].id, round(hits[0].score, 3)) == (rows(30)[3]["id"], 1.0)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "auto"])
def test_a_folder_of_this_machine_is_refused_for_a_cluster(make, trained, address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    with pytest.raises(ConfigError, match=r"a folder of this machine.*'(ray://)?10\.0\.0\.[12].* or file:///.*legal"):
        estimate(make(**legal(trained), run__address=address))
    on_all = {"encoder__adapters": {"legal": f"file://{trained / 'legal'}"}, "encoder__task": "legal"}
    assert estimate(make(**on_all, run__address=address), tokens_per_s=1.0).rows == 30


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_cannot_read_an_adapter_says_so(make, trained, reporter):
    for file in (trained / "legal").glob("adapter_*"):
        storage.put(f"memory://legal/{file.name}", file.read_bytes())  # only this process has it
    job = make(encoder__adapters={"legal": "memory://legal"}, encoder__task="legal", run__address="local")
    with pytest.raises(ModelError, match="^adapter 'legal': memory://legal is not an adapter"):
        backfill(job, reporter)


def test_a_wrong_task_names_the_tasks_of_the_model_and_of_the_adapters(make, trained):
    with pytest.raises(ConfigError, match=r"has no task 'legl': its tasks are retrieval\.query, .*, legal\."):
        estimate(make(**{**legal(trained), "encoder__task": "legl"}))
    with pytest.raises(
        ConfigError, match="adapters names 'legal', which no row uses, because encoder.task is 'separation'"
    ):
        estimate(make(**{**legal(trained), "encoder__task": "separation"}))


def test_a_relative_place_that_is_gone_is_named_as_a_directory_too(make, tmp_path, trained, reporter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "legal", tmp_path / "adapters" / "legal")
    backfill(make(encoder__adapters={"legal": "adapters/legal"}, encoder__task="legal"), reporter)
    shutil.rmtree(tmp_path / "adapters")
    said = (
        "its path 'adapters/legal' is no directory on this machine, and could not be fetched from the hub .* --adapter"
    )
    with pytest.raises(ModelError, match=f"adapter 'legal': {said}"):
        Searcher(str(tmp_path / "table"))
