"""Facts about the machine and the code for result files."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.race.peers import ROOT
from pipeline.plan.throughput import processor_flags

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile")


def hardware() -> str:
    """Processor, cores, what it computes with, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = [flag for flag in FLAGS if flag in processor_flags()]
    lacks = [flag for flag in FLAGS if flag not in has]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = values.get("model name", platform.machine())
    return (
        f"{name}, {os.cpu_count()} cores ({', '.join(has) or 'no vector flags'}; without {', '.join(lacks)}), "
        f"{memory_gib:.0f} GiB, Linux {platform.release()}"
    )


def versions(*packages: str) -> str:
    """Return the versions of Python and some packages of this environment."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def commit() -> str:
    """The commit that is measured, with a word where files differ from it."""
    try:
        asked = ["git", "describe", "--always", "--dirty=, with changes", "--abbrev=7", "--exclude=*"]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def gpu() -> str:
    """Return the name of the first GPU, or words for a page without one."""
    import torch

    return (
        torch.cuda.get_device_name(0)
        if torch.cuda.is_available()
        else "none; these figures of a CPU only try the command"
    )


def written(command: str, date: str) -> str:
    """Return the line of a page that says what wrote it, and when."""
    return f"{date}, commit {commit()}. Written by `{command}`."


def load() -> str:
    """Return the load averages over 1, 5 and 15 minutes."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())
