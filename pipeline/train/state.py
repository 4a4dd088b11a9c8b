"""The state of a training: finished, running or stopped. `vectide status` shows it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors import storage
from pipeline.job.fingerprint import digest
from pipeline.ledger.table_lock import TableLock
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.record import not_a_record, read_record


@dataclass(frozen=True, slots=True)
class TrainingState:
    """State of the training in a folder.

    Attributes:
        training: Its name, a hash of its settings: the run of its reports.
        state: "running" if a process holds the lock of the folder.
        step: Number of steps of a finished training; else the step of the newest complete checkpoint, 0 without one.
        out: URL of the folder.
        owner: The process that trains, in words; None unless it is running.
    """

    training: str
    state: Literal["finished", "running", "stopped"]
    step: int
    out: str
    owner: str | None = None

    def words(self) -> str:
        """Return the state as a sentence."""
        if self.state == "finished":
            return "a finished training: `vectide report` shows it"
        if self.state == "running":
            return f"a training that is running, by {self.owner}; its last checkpoint is of step {self.step:,}"
        return f"a stopped training: run the same `vectide train` again, and it continues from step {self.step:,}"


def run_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the training with these settings."""
    return digest(settings, length=8)


def state_of(out: str) -> TrainingState | None:
    """Return the state of the training in a folder; None if there is none.

    Raises:
        DataError: the record of the folder cannot be read.
        TableConflict: its lock cannot be read.
    """
    url = storage.absolute(out)
    if (record := read_record(url)) is None:
        return None
    training = run_of(record.settings)
    owner = TableLock(url, "", what="vectide status").live_owner()
    if owner is not None:
        step = Checkpoints(url).newest() or 0
        return TrainingState(training, "running", step, url, owner.describe(time.time()))
    record = read_record(url) or record  # the result is written before the lock is released
    if record.result is not None:
        try:
            return TrainingState(training, "finished", int(record.result["fitted"]["steps"]), url)
        except (LookupError, TypeError, ValueError):
            raise not_a_record(url) from None
    return TrainingState(training, "stopped", Checkpoints(url).newest() or 0, url)
