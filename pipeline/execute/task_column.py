"""One task a row: what `source.task_column` says, checked against the model.

Used by the first stage. A row without a task takes the job's; a row that names one which the model does not have is set
aside, since encoding it with another would put a vector of another kind in the table.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import ID, POSITION, SHARD, TASK, QuarantinedRow


def check_task_column(column: str | None, model: ModelSpec) -> None:
    """Raise ConfigError where a job names a task column and the model has no tasks."""
    if column is not None and not model.tasks:
        raise ConfigError(
            f"source.task_column is {column!r}, but {model.model} has no tasks; leave task_column out of the job"
        )


def settle_tasks(table: pa.Table, model: ModelSpec) -> tuple[pa.Table, list[QuarantinedRow]]:
    """The rows with a task each, and those whose task the model does not have.

    Args:
        table: A unit as read; unchanged where it has no task column.
        model: Whose tasks count; its own task is the default.
    """
    if TASK not in table.column_names:
        return table, []
    names = [model.task if name is None else name for name in table.column(TASK).to_pylist()]
    known = np.array([name is None or name in model.tasks for name in names], dtype=bool)
    place = table.column_names.index(TASK)
    table = table.set_column(place, TASK, pa.array(names, pa.string()))
    if known.all():
        return table, []
    bad = [
        QuarantinedRow(
            row[SHARD],
            row[POSITION],
            row[ID],
            "unknown_task",
            f"the model has no task {row[TASK]!r}; its tasks are {', '.join(model.tasks)}",
        )
        for row in table.filter(pa.array(~known)).select([SHARD, POSITION, ID, TASK]).to_pylist()
    ]
    return table.filter(pa.array(known)), bad
