"""The watchdog ends a process that hangs, with or without the interpreter lock, and no other process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.data import DataContext

from pipeline.execute import ray_data
from pipeline.execute.attempts import HANG_EXIT_CODE
from pipeline.run.backfill import backfill
from tests.integration.conftest import Silent, make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]
HANG = "import time; time.sleep(600)"
HANG_WITH_THE_LOCK = "import ctypes; ctypes.PyDLL(None).sleep(600)"
PROGRESS = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: done.append(1); time.sleep(0.01)"
SCRIPT = """
from pipeline.execute.watchdog import watchdog
done = []
with watchdog(0.5, lambda: len(done), on_timeout=lambda: print("timeout", flush=True)):
    exec({work!r})
print("done")
"""


@pytest.mark.parametrize(
    ("work", "code", "printed"),
    [(HANG, HANG_EXIT_CODE, "timeout\n"), (HANG_WITH_THE_LOCK, 1, ""), (PROGRESS, 0, "done\n")],
)
def test_a_hanging_process_is_ended_and_one_with_progress_is_not(work, code, printed):
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, printed)
    assert ("most recent call first" in done.stderr) == (code != 0)  # the stack goes to the worker's log


INLINE_RUN = """
import sys, time
from jobs.cli import main
from pipeline.execute.stages import encode, read, write
def hang(*args, **kwargs):
    while True: time.sleep(1)
{patch}
sys.argv = ["vectide", "backfill", {job!r}]
main()
"""
PATCHES = {
    "read": "read.read_unit = hang",
    "encode": "encode.EncodeStage._vectors = hang",
    "write": "write.write_unit = hang",
}


@pytest.mark.parametrize("stage", PATCHES)
def test_an_inline_run_that_hangs_ends_with_one_error_and_keeps_units(tmp_path, tiny_model, stage):
    corpus = write_corpus(tmp_path / "corpus", [rows(6)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__row_timeout_s=1.5)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-c", INLINE_RUN.format(patch=PATCHES[stage], job=str(path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == HANG_EXIT_CODE, done.stderr
    assert f"error: no progress in the {stage} stage of unit 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "most recent call" not in done.stderr
    # Resume inline in this process, which is not patched; with `auto` an unfinished run would resume with workers.
    assert backfill(job, Silent()).rows == 6


def test_a_compaction_that_hangs_is_ended():
    work = (
        "import time\n"
        "from actors.schema import RewriteUnit\n"
        "from pipeline.execute.attempts import NoAttemptLog\n"
        "from pipeline.execute.stages import spec, write\n"
        "write.copy_rows = lambda unit, spec: time.sleep(600)\n"
        "write.rewrite(spec.to_block(RewriteUnit(7, ())), None, NoAttemptLog(), 0.5)"
    )
    command = [sys.executable, "-c", work]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == HANG_EXIT_CODE, done.stderr
    assert "in the rewrite stage of unit 7" in done.stderr


@pytest.mark.parametrize(
    ("row_timeout_s", "environment", "expected"),
    [(600.0, {}, 6000.0), (10.0, {}, 1800.0), (None, {}, 1800.0), (600.0, {ray_data._RAY_STALL_VARIABLE: "7"}, 7.0)],
)
def test_the_stall_timeout_is_longer_than_the_search_for_a_hanging_row(
    monkeypatch, row_timeout_s, environment, expected
):
    monkeypatch.delenv(ray_data._RAY_STALL_VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 7.0)
    ray_data._set_stall_timeout(1800.0, row_timeout_s)
    assert ray_data._stall_timeout_s() == expected


@pytest.mark.parametrize(("seconds", "text"), [(6, "6 seconds"), (1800, "30 minutes"), (43200, "12 hours")])
def test_durations_are_printed_in_a_unit_that_fits(seconds, text):
    assert ray_data._duration(seconds) == text
