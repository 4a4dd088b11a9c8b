"""`import vectide` gives Python users what the commands do, and neither Ray nor torch before they are needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vectide
from actors.errors import VectideError
from tests.checkpoints.bert import write_bert

ROOT = Path(__file__).parents[2]


def test_each_name_is_there_and_documented():
    for name in vectide.__all__:
        assert getattr(vectide, name).__doc__, name


@pytest.mark.slow
def test_importing_it_loads_neither_ray_nor_torch():
    script = "import sys, vectide; print(*sorted({'ray', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.slow
def test_a_job_runs_from_python_without_a_reporter(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": 1, "text": "the tide comes in"}\n{"id": 2, "text": "rain falls"}\n')
    model = write_bert(tmp_path / "model", pooling={"pooling_mode_mean_tokens": True}, max_tokens=62)
    job = vectide.Job.model_validate(
        {
            "source": {"uri": str(tmp_path / "corpus.jsonl"), "id": "id"},
            "table": {"uri": str(tmp_path / "table")},
            "encoder": {"model": str(model)},
            "run": {"address": "inline"},
        }
    )
    assert vectide.plan(job, tokens_per_s=1.0).rows == 2
    outcome = vectide.backfill(job)
    assert (outcome.rows, outcome.published) == (2, True)
    assert not vectide.refresh(job).published
    assert vectide.status(str(tmp_path / "table")).rows == 2
    hits = vectide.Searcher(str(tmp_path / "table")).search(["tides"], k=1)
    assert [len(each) for each in hits] == [1]


def test_the_names_stay():
    assert sorted(vectide.__all__) == [
        *["Curation", "Job", "Searcher", "Training", "backfill", "changes", "curate", "evaluate", "iter_changes"],
        *["load_curation", "load_encoder", "load_job", "load_training", "plan", "refresh", "report", "status"],
        *["train", "vectors_of"],
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A table of one version, made with path objects only."""
    folder = tmp_path_factory.mktemp("front")
    (folder / "corpus.jsonl").write_text('{"id": 1, "text": "the tide comes in"}\n')
    model = write_bert(folder / "model", pooling={"pooling_mode_mean_tokens": True}, max_tokens=62)
    document = {
        "source": {"uri": folder / "corpus.jsonl", "id": "id"},
        "table": {"uri": folder / "table"},
        "encoder": {"model": model},
        "run": {"address": "inline"},
    }
    vectide.backfill(vectide.Job.model_validate(document))
    return Path(folder, "table")


@pytest.mark.slow
def test_paths_may_be_path_objects(table, tmp_path):
    assert vectide.status(table).rows == 1
    assert [change.upserts.num_rows for change in vectide.iter_changes(table, 0)] == [1]
    assert vectide.changes(table, 0, tmp_path / "out").upserts == 1
    assert len(vectide.Searcher(table, model=table.parent / "model", cache_size=None).search(["tides"])[0]) == 1
    assert vectide.load_encoder(table.parent / "model").spec.dim
    job = yaml.safe_dump({"source": {"uri": "a"}, "table": {"uri": "b"}, "encoder": {"model": "c"}})
    (tmp_path / "job.yaml").write_text(job)
    assert vectide.load_job(tmp_path / "job.yaml").encoder.model == "c"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda front, table: front.status(5), "table is 5; it must be a path or a URL"),
        (lambda front, table: front.status(""), "table is ''; it must be a path or a URL"),
        (lambda front, table: front.iter_changes(None, 1), "table is None; it must be"),
        (lambda front, table: front.iter_changes(table, -1), "since is -1; it must be a whole number of 0 or more"),
        (lambda front, table: front.iter_changes(table, "1"), "since is '1'; it must be a whole number"),
        (lambda front, table: front.iter_changes(table, 0, True), "version is True; it must be a whole number"),
        (lambda front, table: front.iter_changes(table, 0, start="2"), "start is '2'; it must be a whole number"),
        (lambda front, table: front.iter_changes(table, 0, start=99), "have positions 0 to 1, not 99"),
        (lambda front, table: front.iter_changes(table, 7), "has no version 7"),
        (lambda front, table: front.changes(table, 0.5, "out"), "since is 0.5; it must be a whole number"),
        (lambda front, table: front.changes(table, 0, 5), "out is 5; it must be a path or a URL"),
        (lambda front, table: front.changes(b"t", 0, "out"), "table is b't'; it must be a path or a URL"),
        (lambda front, table: front.Searcher(["t"]), r"table is \['t'\]; it must be a path"),
        (
            lambda front, table: front.Searcher(table, version=-1),
            "version is -1; it must be a whole number of 0 or more",
        ),
        (lambda front, table: front.Searcher(table, model=3), "model is 3; it must be a path"),
        (lambda front, table: front.Searcher(table, adapter=3), "adapter is 3; it must be a path"),
        (lambda front, table: front.Searcher(table, cache_size=-3), "the cache size -3 must be a size above 0"),
        (
            lambda front, table: front.Searcher(table).search("tides"),
            "questions is 'tides'; it must be a list of texts",
        ),
        (lambda front, table: front.Searcher(table).search(None), "questions is None; it must be a list of texts"),
        (
            lambda front, table: front.Searcher(table).search([None]),
            "the question None is neither a text nor the bytes of a picture",
        ),
        (
            lambda front, table: front.Searcher(table).search(["a"], k=0),
            "k is 0; it must be a whole number of 1 or more",
        ),
        (lambda front, table: front.Searcher(table).search(["a"], k="3"), "k is '3'; it must be a whole number"),
        (
            lambda front, table: front.Searcher(table).search(["a"], late="no"),
            "late is 'no'; it must be True or False",
        ),
        (lambda front, table: front.Searcher(table).search(["a"], where=5), "where is 5; it must be an SQL condition"),
        (lambda front, table: front.load_job(7), "the job file is 7; it must be a path"),
        (lambda front, table: front.load_encoder(7), "the model is 7; it must be a path"),
        (
            lambda front, table: front.curate("job.yaml"),
            "the job is 'job.yaml'; give what vectide.load_curation returns",
        ),
        (lambda front, table: front.load_curation(7), "the job file is 7; it must be a path"),
        (lambda front, table: front.backfill("job.yaml"), "the job is 'job.yaml'; give what vectide.load_job returns"),
        (lambda front, table: front.refresh(table), "the job is PosixPath.*; give what vectide.load_job returns"),
        (lambda front, table: front.plan({"source": {}}), "the job is {'source': {}}; give what"),
        (lambda front, table: front.plan(None, tokens_per_s=0), "tokens_per_s is 0; it must be a number above 0"),
    ],
)
def test_arguments_of_other_types_are_refused_with_the_rule(table, monkeypatch, tmp_path, call, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VectideError, match=said):
        call(vectide, table)
    assert list(tmp_path.iterdir()) == []
