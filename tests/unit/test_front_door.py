"""`import vectide` gives Python users what the commands do, and neither Ray nor torch before they are needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vectide
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
        *["Job", "Searcher", "backfill", "changes", "iter_changes", "load_encoder", "load_job"],
        *["plan", "refresh", "status"],
    ]
