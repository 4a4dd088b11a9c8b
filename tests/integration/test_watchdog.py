"""The watchdog ends a process that hangs, holding the interpreter's lock or not, and only that; and the run waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.data import DataContext

from pipeline.execute import ray_data
from pipeline.execute.attempts import HUNG
from pipeline.run.backfill import backfill
from tests.integration.conftest import Silent, make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]
HANG = "import time; time.sleep(600)"
HANG_WITH_THE_LOCK = "import ctypes; ctypes.PyDLL(None).sleep(600)"
GO_FORWARD = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: done.append(1); time.sleep(0.01)"
SCRIPT = """
from pipeline.execute.watchdog import watchdog
done = []
with watchdog(0.5, lambda: len(done), last_words=lambda: print("last words", flush=True)):
    exec({work!r})
print("the work is done")
"""


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [(HANG, HUNG, "last words\n"), (HANG_WITH_THE_LOCK, 1, ""), (GO_FORWARD, 0, "the work is done\n")],
)
def test_what_hangs_is_ended_and_what_goes_forward_is_not(work, code, said):
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, said)
    assert ("most recent call first" in done.stderr) == (code != 0)  # where it hung is in the worker's log


INSIDE = """
import sys, time
from jobs.cli import main
from pipeline.execute.stages import encode, read, write
def hang(*args, **kwargs):
    while True: time.sleep(1)
{patch}
sys.argv = ["vectide", "backfill", {job!r}]
main()
"""
PLACES = {
    "read": "read.read_unit = hang",
    "encode": "encode.EncodeStage._vectors = hang",
    "write": "write.write_unit = hang",
}


@pytest.mark.parametrize("stage", PLACES)
def test_a_run_inside_one_process_ends_in_a_sentence_and_keeps_what_it_has(tmp_path, tiny_model, stage):
    corpus = write_corpus(tmp_path / "corpus", [rows(6)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__row_timeout_s=1.5)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-c", INSIDE.format(patch=PLACES[stage], job=str(path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == HUNG, done.stderr
    assert f"error: nothing went forward in the {stage} stage of unit 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "most recent call" not in done.stderr
    # Now there is a plan that did not come to its end, so `auto` would go on with workers; here the process is fine again.
    assert backfill(job, Silent()).rows == 6


def test_a_compaction_that_hangs_ends_too():
    work = (
        "import time\n"
        "from actors.schema import Unit\n"
        "from pipeline.execute.attempts import NoAttemptLog\n"
        "from pipeline.execute.stages import spec, write\n"
        "write.carry = lambda unit, spec: time.sleep(600)\n"
        "write.rewrite(spec.to_block(Unit(7, (), carry=True)), None, NoAttemptLog(), 0.5)"
    )
    command = [sys.executable, "-c", work]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == HUNG, done.stderr
    assert "in the rewrite stage of unit 7" in done.stderr


@pytest.mark.parametrize(
    ("row_timeout_s", "environment", "expected"),
    [(600.0, {}, 6000.0), (10.0, {}, 1800.0), (None, {}, 1800.0), (600.0, {ray_data._RAYS_OWN: "7"}, 7.0)],
)
def test_a_run_waits_longer_than_a_hanging_row_is_looked_for(monkeypatch, row_timeout_s, environment, expected):
    monkeypatch.delenv(ray_data._RAYS_OWN, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 7.0)
    ray_data._set_stall_timeout(1800.0, row_timeout_s)
    assert ray_data._stall_timeout_s() == expected


@pytest.mark.parametrize(("seconds", "text"), [(6, "6 seconds"), (1800, "30 minutes"), (43200, "12 hours")])
def test_a_wait_is_told_in_units_that_fit(seconds, text):
    assert ray_data._time(seconds) == text
