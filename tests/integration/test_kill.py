"""SIGKILL of the whole process tree in the middle of a run, again and again: the table ends as if nothing happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from deltalake import DeltaTable

from pipeline.run.backfill import backfill
from tests.integration.conftest import Silent, make_job, rows, write_corpus

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def descendants(pid: int) -> list[int]:
    """A process and all below it, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        here = todo.pop()
        found.append(here)
        todo += parents.get(here, [])
    return found


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def receipts(table: Path) -> int:
    return len(list(table.glob("_vectide/runs/*/plans/*/receipts/*/*.json")))


def start(job: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs", "backfill", str(job)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def write_job(path: Path, corpus: Path, table: Path, model: Path) -> Path:
    job = make_job(
        corpus, table, model, table__partition_by=["lang"], run__unit_rows=8, run__replicas=1, run__address="local"
    )
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    return path


def test_a_run_killed_several_times_ends_like_a_whole_one(tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(240)])
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    job = write_job(tmp_path / "killed.yaml", corpus, killed, tiny_model)
    for wanted in (1, 8):
        process = start(job)
        while receipts(killed) < wanted and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        kill_tree(process)
    assert 8 <= receipts(killed) < 30
    assert not DeltaTable.is_deltatable(str(killed))
    assert start(job).wait(timeout=300) == 0
    backfill(make_job(corpus, whole, tiny_model, table__partition_by=["lang"]), Silent())
    once, never = (
        {row["id"]: (row["lang"], row["embedding"]) for row in DeltaTable(str(table)).to_pyarrow_table().to_pylist()}
        for table in (killed, whole)
    )
    assert DeltaTable(str(killed)).count() == 240
    assert once.keys() == never.keys()
    for key, (lang, vector) in once.items():
        assert lang == never[key][0]
        np.testing.assert_allclose(vector, never[key][1], atol=1e-3)
