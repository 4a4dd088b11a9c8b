"""Checks the tasks of `source.task_column` against the model.

Used by the first stage. A row without a task gets the job's task. A row with a task that the model does not have is
quarantined, because a vector for another task would not be comparable with the others.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import ID, POSITION, SHARD, TASK, QuarantinedRow


def check_task_column(column: str | None, model: ModelSpec) -> None:
    """Raise ConfigError if a job names a task column and the model has no tasks."""
    if column is not None and not model.tasks:
        raise ConfigError(
            f"source.task_column is {column!r}, but {model.model} has no tasks; leave task_column out of the job"
        )


def resolve_tasks(table: pa.Table, model: ModelSpec) -> tuple[pa.Table, list[QuarantinedRow]]:
    """Return the rows with their tasks filled in, and the quarantined rows with a task that the model does not have.

    Args:
        table: Rows of a unit; returned unchanged if it has no task column.
        model: The model; its own task is the default.
    """
    if TASK not in table.column_names:
        return table, []
    names = [model.task if name is None else name for name in table.column(TASK).to_pylist()]
    known = np.array([name is None or name in model.tasks for name in names], dtype=bool)
    table = table.set_column(table.column_names.index(TASK), TASK, pa.array(names, pa.string()))
    if known.all():
        return table, []
    quarantined = [
        QuarantinedRow(
            row[SHARD],
            row[POSITION],
            row[ID],
            "unknown_task",
            f"the model has no task {row[TASK]!r}; its tasks are {', '.join(model.tasks)}",
        )
        for row in table.filter(pa.array(~known)).select([SHARD, POSITION, ID, TASK]).to_pylist()
    ]
    return table.filter(pa.array(known)), quarantined
