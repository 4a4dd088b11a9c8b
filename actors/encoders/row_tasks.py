"""Tasks of the rows of a call: one for all, or one for each. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from actors.encoders.spec import ModelSpec, check_task
from actors.errors import ConfigError


def tasks_of(
    spec: ModelSpec, rows: Sequence[object], task: str | Sequence[str | None] | None, *, method: str
) -> Sequence[str | None] | None:
    """Returns the task of each row; None: all have the spec's.

    Args:
        spec: The model.
        rows: The content of the rows.
        task: One for all, or one per row.
        method: The caller, for messages.

    Raises:
        ConfigError: `rows` is a single text; or as for `check_tasks`.
    """
    if isinstance(rows, str):
        raise ConfigError(f"{method} takes a list of texts; put a single text into a list.")
    tasks = [task] * len(rows) if isinstance(task, str) else task
    check_tasks(spec, tasks, len(rows))
    return tasks


def check_tasks(spec: ModelSpec, tasks: Sequence[str | None] | None, rows: int) -> None:
    """Raises `ConfigError` unless there is one task of the model, or None, for each of so many rows."""
    if tasks is None:
        return
    if len(tasks) != rows:
        raise ConfigError(f"{len(tasks)} tasks for {rows} rows: give one task per row, or one for all.")
    for task in {task for task in tasks if task is not None}:
        check_task(task, spec.tasks, where=spec.model)


def tasks_at(
    spec: ModelSpec, tasks: Sequence[str | None] | None, rows: npt.NDArray[np.int64]
) -> list[str | None] | None:
    """Returns the tasks of some rows by their numbers; None: no row has one."""
    if tasks is not None:
        return [tasks[int(row)] for row in rows]
    return None if spec.task is None else [spec.task] * len(rows)
