"""Tests of `tune_malloc` in subprocesses, because its settings cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from actors.encoders.compute.malloc import tune_malloc

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = tune_malloc() if sys.argv[1] == "keep" else False
tensors = [torch.ones(2 << 20) for _ in range(3)]  # 8 MiB each
del tensors
before = faults()
for _ in range(50):
    tensors = [torch.ones(2 << 20) for _ in range(3)]
    del tensors
print(int(kept), faults() - before)
"""


def run(how: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return int(kept), int(faults)


@pytest.mark.slow
def test_pages_are_kept_for_the_next_micro_batch_with_glibc():
    kept, faults = run("keep")
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        assert faults < 5 * 3 * 2048  # of 50 times 3 * 2,048 pages; the heap may grow once more after the first tensors
