"""Writes the golden tables and their model. Run it in an empty checkout of the version to keep: see the package's docstring."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from pipeline.execute.progress import NullReporter
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from tests.checkpoints.bert import write_bert
from tests.golden import FOLDER, MODEL, NAMES, job_of, row, write_corpus


class _StopError(Exception):
    pass


class _Stopping(NullReporter):
    def finished_unit(self, receipt: object) -> None:
        raise _StopError


def main() -> None:
    """Write all of them."""
    os.chdir(tempfile.mkdtemp())  # with relative paths, so that ledger and log name no checkout
    write_bert(
        Path(MODEL.name), hidden=16, layers=1, inner=16, positions=96, pooling={"pooling_mode_mean_tokens": True}
    )
    for name in NAMES:
        shards = [row(number) for number in range(8)], [row(number) for number in range(8, 12)]
        write_corpus(*shards)
        job = job_of(name, name)
        job = job.model_copy(update={"encoder": job.encoder.model_copy(update={"model": "model"})})
        if name == "stopped":
            with contextlib.suppress(_StopError):
                backfill(job, _Stopping())
        else:
            backfill(job)
        if name == "partitioned":
            write_corpus(shards[0], [*shards[1], row(12)])
            refresh(job)
        shutil.rmtree(f"{name}/_vectide/lock")  # it names this machine
    for name in (*NAMES, MODEL.name):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.move(name, FOLDER / name)


if __name__ == "__main__":
    main()
