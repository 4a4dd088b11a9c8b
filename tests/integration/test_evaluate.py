"""Evaluation of tables and models from the command line."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from tests.integration.conftest import Silent, make_job, rows, write_corpus


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs `vectide evaluate` and returns its exit code, its JSON or text, and stderr."""

    def evaluate(*arguments):
        monkeypatch.setattr(sys, "argv", ["vectide", "evaluate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as system_exit:
            main()
        printed = capsys.readouterr()
        return (
            int(system_exit.value.code or 0),
            json.loads(printed.out) if printed.out.startswith("{") else printed.out,
            printed.err,
        )

    return evaluate


@pytest.fixture(scope="module")
def table(tmp_path_factory, tiny_model):
    """A table of two versions: the second one cuts all texts at three tokens."""
    folder = tmp_path_factory.mktemp("evaluate")
    corpus = write_corpus(folder / "corpus", [rows(40)])
    job = make_job(corpus, folder / "table", tiny_model)
    backfill(job, Silent())
    refresh(job.model_copy(update={"encoder": job.encoder.model_copy(update={"max_tokens": 3})}), Silent())
    return folder / "table"


@pytest.fixture
def judged(tmp_path):
    """Options that name judged queries: the texts of rows 0 to 19, and one document that is not there."""
    numbers = range(20)
    texts = [f"title {number}\n\ntext number {number}" for number in numbers]
    pq.write_table(pa.table({"id": [f"q{number}" for number in numbers], "text": texts}), tmp_path / "queries.parquet")
    pairs = [*((f"q{number}", f"r{number}") for number in numbers), ("q0", "gone")]
    judgements = pa.table({"query": [query for query, _ in pairs], "doc": [document for _, document in pairs]})
    pq.write_table(judgements, tmp_path / "judgements.parquet")
    return ["--queries", tmp_path / "queries.parquet", "--judgements", tmp_path / "judgements.parquet"]


def test_two_versions_are_compared_on_the_same_queries(run, table, judged, tmp_path):
    code, found, _ = run(table, *judged, "--against", "@2", "--version", 1, "--json", "--out", tmp_path / "out")
    worse, better = found["rows"]
    assert (code, found["ability"], found["items"], found["main"]) == (0, "retrieval", 20, "nDCG@10")
    assert [worse["label"], better["label"]] == [f"{table}, version 2", f"{table}, version 1"]
    assert worse["differences"] == {}
    assert better["scores"]["nDCG@10"]["value"] > 0.9 > worse["scores"]["nDCG@10"]["value"]
    gap = better["differences"]["nDCG@10"]
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert gap["p"] < 0.001
    assert found["notes"] == [f"1 of 21 judged documents are not in {table}, version {version}" for version in (2, 1)]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    values = pq.read_table(tmp_path / "out" / "values.parquet")
    assert values.column_names[:4] == ["row", "task", "item", "nDCG@10"]
    assert values.num_rows == 40


def test_a_ladder_is_compared_with_its_first_rung(run, table, judged):
    ladder = ["--version", 1, "--dims", "16,8", "--precision", "float32,int8,binary"]
    _, found, _ = run(table, *judged, *ladder, "--json")
    assert [(row["label"], row["bytes_per_vector"]) for row in found["rows"]] == [
        *[("16 x float32", 64), ("16 x int8", 16), ("16 x binary", 2)],
        *[("8 x float32", 32), ("8 x int8", 8), ("8 x binary", 1)],
    ]
    whole = run(table, *judged, "--version", 1, "--json")[1]["rows"][0]["scores"]["nDCG@10"]
    scores = [row["scores"]["nDCG@10"]["value"] for row in found["rows"]]
    assert scores[0] == pytest.approx(whole["value"])
    assert scores[5] < scores[0]
    _, printed, notes = run(table, *judged, *ladder)
    assert f"{table}, version 1: retrieval of 20 queries" in printed
    assert "difference to the first row" in printed
    assert notes.startswith("note: 1 of 21 judged documents are not in")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{table}"], "--queries and --judgements go together"),
        (["--queries", "{queries}", "--judgements", "{judgements}"], "--queries needs the TABLE to search"),
        (["{table}", "--dims", "16", "--against", "@1"], "--dims and --precision are for one table"),
        (["{table}", "--dims", "a"], "--dims 'a' must be whole numbers"),
        (["{table}", "--against", "{table}@9"], "has no version 9"),
        (["{table}", "--model", "a", "--model", "b"], "--model is the new place of the model of one TABLE"),
    ],
)
def test_options_that_do_not_fit_are_named(run, table, judged, arguments, said):
    places = {"table": table, "queries": judged[1], "judgements": judged[3]}
    given = [argument.format(**places) for argument in arguments]
    code, _, stderr = run(*given, *([] if len(given) < 2 or "--queries" in given else judged))
    assert code == 2
    assert said in stderr
