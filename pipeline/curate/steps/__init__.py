"""The steps of a curation, a file each. The class of a step has the name of its settings."""

from __future__ import annotations

from importlib import import_module

from pipeline.curate.steps.base import Step
from pipeline.job.curation import Curation


def steps_of(job: Curation) -> tuple[Step, ...]:
    """Return the steps of a job in their order."""
    sides = tuple(job.rows.sides)
    made = []
    for named in job.steps:
        module = import_module(f"{__name__}.{named.name}")
        made.append(getattr(module, type(named.settings).__name__)(named.settings, sides))
    return tuple(made)
