"""Choice of the executor: this process for a small job, Ray otherwise."""

from __future__ import annotations

import os

from pipeline.execute.inline import InlineExecutor
from pipeline.execute.outcome import Executor
from pipeline.job.config import Run


def executor_for(run: Run) -> Executor:
    """What a job asks for.

    Raises:
        ConfigError: there is no such cluster, or it is too small.
    """
    if run.address == "inline":
        return InlineExecutor()
    from pipeline.execute.ray_data import RayExecutor  # ray takes seconds to import: only where it is used

    return RayExecutor(run)


def inline_if_small(address: str, *, fits_in_process: bool) -> Executor | None:
    """This process, where there is little to do and the choice is ours; None otherwise."""
    here = address == "inline" or (fits_in_process and address == "auto" and "RAY_ADDRESS" not in os.environ)
    return InlineExecutor() if here else None
