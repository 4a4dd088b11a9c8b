"""The watchdog ends a process that hangs, holding the interpreter's lock or not, and only that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
