"""Chooses the executor: this process for a small job, otherwise Ray."""

from __future__ import annotations

import ctypes

from pipeline.execute.inline import InlineExecutor
from pipeline.execute.outcome import Executor
from pipeline.job.config import Run
from pipeline.job.values import is_inline


def executor_for(run: Run) -> Executor:
    """Return the executor for `run.address`.

    Raises:
        ConfigError: the cluster does not exist or is too small.
    """
    if run.address == "inline":
        return InlineExecutor(_device(run))
    from pipeline.execute.ray_data import RayExecutor  # importing ray takes seconds

    return RayExecutor(run)


def inline_if_small(run: Run, *, fits_in_process: bool) -> Executor | None:
    """Return an inline executor if the job is small and the user named no cluster, or for "inline"; else None."""
    return InlineExecutor(_device(run)) if is_inline(run.address, fits_in_process=fits_in_process) else None


def _device(run: Run) -> str:
    """Return the device of an encoder in this process: its GPU, if it has one and the job does not exclude it."""
    wanted = _has_gpu() if run.gpus_per_replica == "auto" else run.gpus_per_replica > 0
    return "cuda" if wanted else "cpu"


def _has_gpu() -> bool:
    """Return whether torch sees a GPU. Imports torch, which takes seconds, only where NVIDIA's driver is installed."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
