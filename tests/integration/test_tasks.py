"""Tasks of mteb by their published names, without a network: their data is in a cache of Hugging Face."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError, DataError
from pipeline.quality.bootstrap import Difference
from pipeline.quality.metrics import retrieval_values
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.integration.conftest import Silent
from tests.integration.hub import cache_dataset
from tests.integration.test_evaluate import run
from tests.integration.test_pages import png

__all__ = ["run"]  # a fixture

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:mteb.*", "ignore::FutureWarning:sklearn.*")

RETRIEVAL, CLASSES, CLUSTERS, STS = NAMES = (
    *("NFCorpus", "Banking77Classification.v2"),
    *("TwentyNewsgroupsClustering.v2", "STSBenchmark"),
)
PAGES, PAGES_OF_FOUR = "Vidore2ESGReportsHLRetrieval", "Vidore2ESGReportsRetrieval"
SETTINGS = ["run.address=inline", "run.unit_rows=16"]
ROOT = Path(__file__).parents[2]
WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]


def text(number: int) -> str:
    return f"{WORDS[number % 3]} {WORDS[3 + number % 2]} number {number}"


def retrieval() -> dict[str, dict[str, pa.Table]]:
    documents = [f"d{number}" for number in range(40)]
    corpus = pa.table({"_id": documents, "title": ["", "a title"] * 20, "text": [text(number) for number in range(40)]})
    queries = pa.table({"_id": [f"q{number}" for number in range(12)], "text": [text(number) for number in range(12)]})
    qrels = {"query-id": queries["_id"], "corpus-id": documents[:12], "score": [1, 2] * 6}
    return {"corpus": {"corpus": corpus}, "queries": {"queries": queries}, "default": {"test": pa.table(qrels)}}


def classes() -> dict[str, dict[str, pa.Table]]:
    def split(first: int, count: int) -> pa.Table:
        numbers = range(first, first + count)
        return pa.table({"text": [text(number) for number in numbers], "label": [number % 3 for number in numbers]})

    return {"default": {"train": split(100, 36), "test": split(200, 18)}}


def clusters() -> dict[str, dict[str, pa.Table]]:
    numbers = [range(300, 450), range(450, 600)]
    sentences = [[text(number) for number in part] for part in numbers]
    labels = [[number % 3 for number in part] for part in numbers]
    return {"default": {"test": pa.table({"sentences": sentences, "labels": labels})}}


def sts() -> dict[str, dict[str, pa.Table]]:
    first, second = [text(number) for number in range(600, 620)], [text(number) for number in range(600, 640, 2)]
    scores = [5.0 - number % 5 for number in range(20)]
    return {"default": {"test": pa.table({"sentence1": first, "sentence2": second, "score": scores})}}


def pages() -> dict[str, dict[str, pa.Table]]:
    """Eight pictures, and a query in each of four languages for four of them."""
    import datasets

    features = datasets.Features({"corpus-id": datasets.Value("int64"), "image": datasets.Image()})
    files = [{"bytes": png(number, size=(84, 56)), "path": None} for number in range(8)]
    corpus = datasets.Dataset.from_dict({"corpus-id": [*range(8)], "image": files}, features).data.table
    languages = [name for name in ("french", "spanish", "english", "german") for _ in range(4)]
    numbers = [*range(16)]
    queries = {"query-id": numbers, "query": [text(number) for number in numbers], "language": languages}
    qrels = {"query-id": numbers, "corpus-id": [number % 4 for number in numbers], "score": [1] * 16}
    parts = {"corpus": corpus, "queries": pa.table(queries), "qrels": pa.table(qrels)}
    return {name: {"test": rows} for name, rows in parts.items()}


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The four tasks, with a cache that holds their data and no other."""
    import datasets.config

    cache = tmp_path_factory.mktemp("datasets")
    by_name = {name: mteb.get_task(name) for name in (*NAMES, PAGES, PAGES_OF_FOUR)}
    rows = (retrieval(), classes(), clusters(), sts(), pages(), pages())
    for task, each in zip(by_name.values(), rows, strict=True):
        cache_dataset(cache, task, each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield [by_name[name] for name in NAMES]


# Runs an evaluation in a process that is killed between two units.
KILLED = """
import os, signal, sys
import mteb
from pipeline.evaluate.judge import judge
from tests.integration.conftest import Silent

class Killing(Silent):
    def finished_unit(self, receipt):
        print(receipt.encoded, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

out, model, tasks, settings = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
judge([mteb.get_task(name) for name in tasks], out, Killing(), models=[model], settings=settings)
"""


@pytest.fixture(scope="module")
def judged(cached, tmp_path_factory, tiny_model):
    """The result of an evaluation that was killed between two units, its folder, and the texts that both runs encoded."""
    import datasets.config

    from pipeline.evaluate.judge import judge

    out, resumed = tmp_path_factory.mktemp("judged"), Silent()
    command = [sys.executable, "-c", KILLED, str(out), str(tiny_model), " ".join(NAMES), " ".join(SETTINGS)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    killed = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = judge(cached, str(out), resumed, models=[str(tiny_model)], settings=SETTINGS)
    return result, out, int(killed.stdout), sum(receipt.encoded for receipt in resumed.receipts)


def test_a_killed_evaluation_resumes_and_encodes_no_text_twice(judged):
    result, out, first, second = judged
    assert [task.task for task in result.tasks] == list(NAMES)
    assert [task.main for task in result.tasks] == ["ndcg_at_10", "accuracy", "v_measure", "cosine_spearman"]
    assert all(0 <= task.scores[0] <= 1 for task in result.tasks)
    words = [task.words for task in result.tasks]  # the number in a text finds it, and the first word tells its class
    assert words[0] == 1
    assert all(score is not None and score > 0.5 for score in words[:2])
    assert all(score is not None for score in words)
    documents, queries, similar = 40, 12, 30  # ten sentences are in both columns
    clustered = 12  # the task draws 4 % of 300
    assert 0 < first < documents
    assert first + second == documents + queries + 36 + 18 + clustered + similar
    assert len(list(out.glob("results/local__*/*/*.json"))) == len(NAMES) + 1  # and model_meta.json


def test_results_are_not_computed_again_and_two_models_are_compared(run, judged, cached, tiny_model, tmp_path):
    result, out, _, _ = judged
    other = write_bert(tmp_path / "other", seed=7)
    names = [word for name in (RETRIEVAL, STS) for word in ("--tasks", name)]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    code, found, _ = run("--model", tiny_model, "--model", other, *names, *settings, "--out", out, "--json")
    assert code == 0
    assert found["encoded"][0] == 0
    assert found["encoded"][1] > 0
    before = [result.tasks[0].scores[0], result.tasks[3].scores[0]]
    assert [each["scores"][0] for each in found["tasks"]] == pytest.approx(
        before, abs=1e-6
    )  # mteb rounds what it keeps
    gap = found["tasks"][0]["difference"]
    assert gap["value"] == pytest.approx(found["tasks"][0]["scores"][1] - found["tasks"][0]["scores"][0], abs=1e-5)
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert found["tasks"][1]["difference"] is None
    assert found["difference"]["value"] == pytest.approx(found["means"][1] - found["means"][0])


def test_a_judgement_is_printed_task_by_task(judged, capsys):
    from jobs.evaluated import print_judgement

    result = judged[0]
    gap = Difference(-0.25, -0.5, 0.0, 0.04)
    tasks = [
        replace(task, scores=(0.75, 0.5), difference=gap if task.task == RETRIEVAL else None) for task in result.tasks
    ]
    print_judgement(
        replace(result, models=("A", "B"), tasks=tuple(tasks), means=(0.75, 0.5), encoded=(0, 1), difference=gap)
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "A: 0 texts encoded B: 1 text encoded" in printed
    assert "NFCorpus Retrieval ndcg_at_10 0.7500 0.5000 1.0000 -0.2500 (-0.5000 to +0.0000), p 0.0400" in printed
    assert "mean of 4 tasks 0.7500 0.5000 of the tasks: -0.2500" in printed


def test_a_table_is_judged_like_the_model_that_made_it(run, judged, cached, tiny_model, tmp_path):
    """By mteb, and by judged queries: the measures are the same."""
    result, out, _, _ = judged
    (table,) = out.glob(f"embeddings/*{tiny_model.name}-*/*documents/table")
    _, found, _ = run(table, "--tasks", RETRIEVAL, "--out", tmp_path / "out", "--json")
    assert (found["tasks"][0]["scores"], found["notes"]) == (list(result.tasks[0].scores), [])
    rows = retrieval()
    queries, qrels = rows["queries"]["queries"], rows["default"]["test"]
    pq.write_table(queries.rename_columns(["id", "text"]), tmp_path / "queries.parquet")
    pq.write_table(qrels.rename_columns(["query", "doc", "relevance"]), tmp_path / "judgements.parquet")
    files = ["--queries", tmp_path / "queries.parquet", "--judgements", tmp_path / "judgements.parquet"]
    scores = run(table, *files, "--json")[1]["rows"][0]["scores"]
    (written,) = (tmp_path / "out").glob(f"results/table__*/*/{RETRIEVAL}.json")
    (of_mteb,) = json.loads(Path(written).read_text())["scores"]["test"]
    names = {"nDCG@10": "ndcg_at_10", "MAP": "map_at_1000", "MRR@10": "mrr_at_10", "Recall@100": "recall_at_100"}
    assert {name: round(scores[name]["value"], 5) for name in names} == {
        name: round(of_mteb[theirs], 5) for name, theirs in names.items()
    }
    _, _, stderr = run(table, "--tasks", STS, "--out", tmp_path / "out")
    assert "STSBenchmark is a task of STS, and a table can only be searched; name the model with --model" in stderr


@pytest.mark.parametrize(("name", "outputs", "queries"), [(PAGES, "dense", 16), (PAGES_OF_FOUR, "[dense,multi]", 0)])
def test_pictures_are_found_by_texts(run, cached, tmp_path, name, outputs, queries):  # noqa: PLR0917
    """Pictures of a task with several languages are encoded once. Late interaction encodes queries while it searches."""
    model = write_jina_v4(tmp_path / "v4")
    settings = [*SETTINGS, f"encoder.outputs={outputs}", "encoder.max_pixels=6272"]
    command = ["--model", model, "--tasks", name, *(word for each in settings for word in ("--set", each)), "--json"]
    _, found, _ = run(*command, "--out", tmp_path / "out")
    assert found["encoded"] == [8 + queries]
    (written,) = (tmp_path / "out").glob(f"results/*/*/experiments/*/{name}.json")
    scores = json.loads(written.read_text())["scores"]["test"]
    assert len(scores) == (1 if name == PAGES else 4)
    assert all(each["recall_at_10"] == 1 for each in scores)  # all eight pictures are found


def test_pictures_are_refused_for_a_model_of_texts(run, cached, tiny_model, tmp_path):
    code, _, stderr = run("--model", tiny_model, "--tasks", STS, "--tasks", PAGES, "--out", tmp_path)
    assert (code, [*tmp_path.iterdir()]) == (2, [])
    assert f"the documents of {PAGES} are pictures, and model {tiny_model} takes texts only" in stderr


def test_each_measure_of_each_query_is_that_of_mteb():
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    random = np.random.default_rng(5)
    documents, queries = [f"d{number}" for number in range(40)], [f"q{number}" for number in range(30)]
    # Few different scores, so that many documents are equal.
    found = {
        query: {row: float(random.integers(4)) / 8 for row in random.permutation(documents)[:25]} for query in queries
    }
    judgements = {
        query: {row: int(random.integers(3)) for row in random.permutation(documents)[:9]} for query in queries
    }
    ours = retrieval_values(judgements, found)
    theirs = calculate_retrieval_scores(found, judgements, [1, 10, 100, 1000])
    names = {"nDCG@10": "ndcg_cut_10", "MAP": "map_cut_1000", "P@1": "P_1", "Recall@10": "recall_10"}
    for name, of_mteb in {**names, "Recall@100": "recall_100"}.items():
        expected = [theirs.all_scores[query][of_mteb] for query in queries]
        assert ours[name] == pytest.approx(expected, abs=1e-6), name
    assert ours["MRR@10"].mean() == pytest.approx(theirs.mrr["MRR@10"], abs=1e-6)


def test_a_dry_run_counts_by_the_statistics_of_mteb(run, cached, tmp_path):
    names = [
        "--tasks",
        RETRIEVAL,
        "--tasks",
        CLASSES,
        "--tasks",
        PAGES,
        "--tasks",
        "Vidore2BioMedicalLecturesRetrieval",
    ]
    rates = ["--tokens-per-second", 1000, "--price-per-hour", 3.6]
    _, found, _ = run(*names, "--dry-run", *rates, "--model", tmp_path / "none", "--json")
    costs = (
        {cost["task"]: cost for cost in found} if isinstance(found, list) else {c["task"]: c for c in json.loads(found)}
    )
    assert costs[RETRIEVAL]["texts"] == 3593 + 323
    assert costs[RETRIEVAL]["tokens"] == pytest.approx(5_786_348 / 4, rel=0.02)
    assert costs[RETRIEVAL]["price"] == pytest.approx(costs[RETRIEVAL]["seconds"] / 1000)
    assert costs[PAGES]["pictures"] == 1538
    assert [cost["data"] for cost in costs.values()] == ["here", "here", "here", "missing"]
    printed = run(*names, "--dry-run", *rates, "--model", tmp_path / "none")[1]
    assert "4 tasks" in printed
    assert "is not on this machine: texts are not cut. 1,000 tokens/s (given)" in printed


def test_tasks_that_cannot_be_run_are_named(run, cached, tiny_model, tmp_path, monkeypatch):
    from pipeline.evaluate.tasks import choose, need_data

    # To know its benchmarks mteb makes thousands of tasks, and each would set the seed of torch.
    monkeypatch.setattr(sys.modules["mteb._set_seed"], "sys", SimpleNamespace(modules={}))
    assert len(choose(["CoIR", "CosQA"])) == 10
    with pytest.raises(
        ConfigError, match="'NFCorpu' is neither a benchmark nor a task of mteb; did you mean 'NFCorpus'"
    ):
        choose(["NFCorpu"])
    with pytest.raises(ConfigError, match="names no task"):
        choose([])
    with pytest.raises(
        DataError,
        match=r"1 tasks have no data of their revision .*: SciFact \(mteb/scifact\)\. On a machine with internet run",
    ):
        need_data([*cached, *choose(["SciFact"])])
    out = ["--out", tmp_path]
    assert "--tasks needs --out" in run("--model", tiny_model, "--tasks", STS)[2]
    assert "--tasks needs a model by --model" in run("--tasks", STS, *out)[2]
    assert "SciFact: " in run("--tasks", "SciFact", "--prefetch")[2]
