"""The watchdog ends a process that hangs, holding the interpreter's lock or not, and only that; and the run waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.data import DataContext

from pipeline import dataflow
from pipeline.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[2]
HANG = "import time; time.sleep(600)"
HANG_WITH_THE_LOCK = "import ctypes; ctypes.PyDLL(None).sleep(600)"
GO_FORWARD = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: done.append(1); time.sleep(0.01)"
SCRIPT = """
from pipeline.watchdog import watchdog
done = []
with watchdog(0.5, lambda: len(done), last_words=lambda: print("last words", flush=True)):
    exec({work!r})
print("the work is done")
"""


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [(HANG, EXIT_CODE, "last words\n"), (HANG_WITH_THE_LOCK, 1, ""), (GO_FORWARD, 0, "the work is done\n")],
)
def test_what_hangs_is_ended_and_what_goes_forward_is_not(work, code, said):
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, said)
    assert ("most recent call first" in done.stderr) == (code != 0)  # where it hung is in the worker's log


@pytest.mark.parametrize(
    ("row_timeout_s", "environment", "expected"),
    [(600.0, {}, 6000.0), (10.0, {}, 1800.0), (None, {}, 1800.0), (600.0, {dataflow._RAYS_OWN: "7"}, 7.0)],
)
def test_a_run_waits_longer_than_a_hanging_row_is_looked_for(monkeypatch, row_timeout_s, environment, expected):
    monkeypatch.delenv(dataflow._RAYS_OWN, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 7.0)
    dataflow._have_patience(1800.0, row_timeout_s)
    assert dataflow._patience_s() == expected


@pytest.mark.parametrize(("seconds", "text"), [(6, "6 seconds"), (1800, "30 minutes"), (43200, "12 hours")])
def test_a_wait_is_told_in_units_that_fit(seconds, text):
    assert dataflow._time(seconds) == text
