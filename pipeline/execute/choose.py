"""Chooses the executor: this process for a small job, otherwise Ray."""

from __future__ import annotations

import os

from pipeline.execute.inline import InlineExecutor
from pipeline.execute.outcome import Executor
from pipeline.job.config import Run


def executor_for(run: Run) -> Executor:
    """Return the executor for `run.address`.

    Raises:
        ConfigError: the cluster does not exist or is too small.
    """
    if run.address == "inline":
        return InlineExecutor()
    from pipeline.execute.ray_data import RayExecutor  # importing ray takes seconds

    return RayExecutor(run)


def inline_if_small(address: str, *, fits_in_process: bool) -> Executor | None:
    """Return an inline executor if the job is small and the user named no cluster, or for "inline"; else None."""
    inline = address == "inline" or (fits_in_process and address == "auto" and "RAY_ADDRESS" not in os.environ)
    return InlineExecutor() if inline else None
