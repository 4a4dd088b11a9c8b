"""The driver of a training: the order of its parts. `vectide train` calls it.

resolve -> record -> prepare the data -> train -> export -> load and compare -> card, report, record

Each part is repeated or skipped by what is in the `out` folder, so the same command goes on after a stop, and a finished
training only says its result again. The weights do not depend on where it was stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from actors import storage
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, DataError
from actors.storage.temp_dirs import disk_errors
from pipeline.job.load import load_training
from pipeline.job.training import Training
from pipeline.ledger.table_lock import lock_table
from pipeline.report.recorder import Recorder
from pipeline.train.card import model_card
from pipeline.train.checkpoints import place
from pipeline.train.evaluate import Comparison, HeldOut, in_training, of_encoder, read_held_out
from pipeline.train.on_ray import train_on_ray
from pipeline.train.record import Record, not_a_record, open_record, settings_of
from pipeline.train.report import Evidence, reported
from pipeline.train.resolve import replaces_own, resolve, writes_checkpoint
from pipeline.train.state import run_of
from pipeline.train.trained import Trained
from pipeline.train.worker import Fitted, Progress

if TYPE_CHECKING:
    from pipeline.train.data import TrainingData

CARD = "README.md"


class Silent:
    """A progress that shows nothing. The default of `train`."""

    def step(self, text: str) -> None:
        """See `Progress`."""

    def trained(self, step: int, steps: int, loss: float, source: str) -> None:
        """See `Progress`."""


def train(job: Training | str | Path, progress: Progress | None = None) -> Trained:
    """Train, or go on with a training that was stopped, or return the result of one that is finished.

    Args:
        job: The job, or the path of its file.
        progress: Receives the progress.

    Raises:
        ConfigError: a setting is wrong, the model or the data does not allow it, or `out` holds another training.
        DataError: rows cannot be read, or too few of them can be used.
        TableConflict: another process of this machine trains in `out`.
        StorageError: a store or a disk failed, for example because it is full.
        ClusterError: workers died again and again.
        VectideError: the loss is not finite; the last good checkpoint is kept.
    """
    progress = progress or Silent()
    if not isinstance(job, Training):
        job = load_training(job)
    job, spec = resolve(job)
    out, settings = storage.absolute(job.out.uri), settings_of(job, spec)
    record = open_record(out, settings)
    if (finished := _finished(job, spec, record, out)) is not None:
        if _has_other_sources(job, record):
            progress.step(
                "the files of data have changed since this training; to train with them, name another out.uri"
            )
        return finished
    held_out = read_held_out(job.train.evaluate) if job.train.evaluate else None
    for note in () if held_out is None else held_out.notes:
        progress.step(f"held-out data: {note}")
    run, evidence = run_of(settings), Evidence(out, job, {})
    # Another process of the same training would remove the checkpoints that this one loads.
    lock = lock_table(out, run, what="train", alone=True)
    with lock, reported(evidence, run, progress) as report, _data_folder(out) as folder:
        data = _prepare(evidence, folder, held_out, record, report)
        evidence.counts = data.counts
        report.works("training")
        fitted = train_on_ray(job, spec, out, data.folder, progress)
        report.step("writing the result, and loading it with the encoder")
        trained = evidence.trained = _export(evidence, spec, data, fitted, held_out)
        record.result = asdict(trained)
        record.write(out)
    return trained


def _finished(job: Training, spec: ModelSpec, record: Record, out: str) -> Trained | None:
    """Return the result that the folder holds; None if there is none, or a file of it is missing."""
    if record.result is None:
        return None
    try:
        found = Trained(**{**record.result, "fitted": Fitted(**record.result["fitted"]), "already_done": True})
    except (LookupError, TypeError):
        raise not_a_record(out) from None
    if writes_checkpoint(job, spec) and found.checkpoint is None:
        return None
    try:
        is_there = all(storage.stat(storage.join(out, name)).size_bytes == size for name, size in found.files.items())
    except FileNotFoundError:
        is_there = False
    return found if is_there else None


def _has_other_sources(job: Training, record: Record) -> bool:
    """Return whether files that the rows were read from have changed; False if they are not there any more."""
    from pipeline.train.prepare import state_of_sources

    try:
        return state_of_sources(job) != record.sources
    except (ConfigError, DataError):
        return False


@contextmanager
def _data_folder(out: str) -> Iterator[Path]:
    """Yield the folder for the prepared data: in `out`, or if that is in a store, a temporary one."""
    if storage.is_local(out):
        yield storage.local_path(place(out))
        return
    with tempfile.TemporaryDirectory(prefix="vectide-train-") as folder:
        yield Path(folder)


def _prepare(
    evidence: Evidence, folder: Path, held_out: HeldOut | None, record: Record, report: Recorder
) -> TrainingData:
    """Prepare the data, and record its hash when the training begins.

    Raises:
        ConfigError: the training began with other rows.
    """
    from pipeline.train.prepare import prepare, state_of_sources

    job, out = evidence.job, evidence.out
    with disk_errors(folder):
        data = prepare(job, folder, frozenset() if held_out is None else held_out.text_hashes, report)
    if not record.data:
        record.data, record.sources = data.digest, state_of_sources(job)
        record.write(out)
    elif record.data != data.digest:
        raise ConfigError(
            f"the rows of {', '.join(source.uri for source in job.data)} have changed since the training in {out!r} began; name "
            f"another folder in out.uri, so that its weights are of one state of the data"
        )
    return data


def _export(
    evidence: Evidence, spec: ModelSpec, data: TrainingData, fitted: Fitted, held_out: HeldOut | None
) -> Trained:
    """Write the result, after the check that the encoder loads it and makes the same vectors."""
    from actors.encoders import load_encoder
    from pipeline.train import export
    from pipeline.train.module import model_of

    job, out = evidence.job, evidence.out
    tasks = job.train.tasks
    with tempfile.TemporaryDirectory(prefix="vectide-train-") as name, disk_errors(Path(name)):
        folder = Path(name)
        model = export.trained_model(job, spec, out)
        export.export(model, job, spec, folder)
        difference, encode = export.check(model, job, spec, folder, data)
        del model
        compared = None
        if held_out is not None:
            # What the training began with: the base, or the adapters that it continued.
            begun = (
                in_training(model_of(job.train, spec).eval())
                if job.train.start_from
                else of_encoder(load_encoder(spec))
            )
            compared = held_out.compare(begun, encode)
        # An adapter in place of one of the model's own is used with the whole model.
        names = {} if replaces_own(spec, tasks) else {task: f"{export.ADAPTERS}/{task}" for task in tasks}
        steps = fitted.steps if fitted.best_step is None else fitted.best_step
        adapters = {task: storage.join(out, each) for task, each in names.items()}
        card = model_card(job, spec, data, steps=steps, adapters=adapters, comparison=compared)
        whole = (folder / export.MODEL).is_dir()
        for place_ in (".", *names.values(), *([export.MODEL] if whole else [])):
            (folder / place_ / CARD).write_text(card, "utf-8")
        files = export.publish(folder, out)
    return Trained(
        out=out,
        model=spec.model,
        adapters=adapters,
        checkpoint=storage.join(out, export.MODEL) if whole else None,
        rows=sum(source.rows for source in data.sources),
        counts=data.counts,
        fitted=fitted,
        difference=difference,
        scores=None if compared is None else _scores(compared),
        files=files,
    )


def _scores(compared: Comparison) -> dict[str, float]:
    return {
        "before": compared.before.value,
        "after": compared.after.value,
        "low": compared.difference.low,
        "high": compared.difference.high,
        "queries": compared.queries,
        "documents": compared.documents,
    }
