"""Trains a model in this process: one of the workers, or the only one.

Everything that lasts is in the `out` folder; nothing is reported to Ray. Light to import, because the driver imports it too:
torch and the libraries of the extra `train` are imported when they are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from actors import storage
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, Diverged
from actors.storage.temp_dirs import disk_errors
from pipeline.job.training import Training
from pipeline.train.checkpoints import Checkpoints, place, save_trained

if TYPE_CHECKING:
    from pipeline.train.callbacks import Measures
    from pipeline.train.trainer import Parts


class Progress(Protocol):
    """Receives the progress of a training."""

    def step(self, text: str) -> None:
        """Report that a part of the work begins, or something that the user should know."""

    def trained(self, step: int, steps: int, loss: float, source: str) -> None:
        """Report that a step of all steps is done, and the name of its source: "" where there is only one."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Result of a training.

    Attributes:
        steps: Steps that were trained.
        planned_steps: Steps that were planned.
        stopped: "finished", or "patience" if no evaluation was better for some time.
        best_step: Step whose weights these are: that of the best evaluation, 0 for those of before the training. None without
            evaluations; then they are those of the last step.
        best_value: nDCG@10 of the best evaluation.
        first_value: nDCG@10 before the training.
        tokens: Tokens of all texts of all steps.
        seconds: Time of all steps, without evaluations and checkpoints.
        workers: Processes that trained.
        device: "cpu" or "cuda".
        budget_tokens: Tokens that went through the model at once in the end.
    """

    steps: int
    planned_steps: int
    stopped: Literal["finished", "patience"]
    best_step: int | None
    best_value: float | None
    first_value: float | None
    tokens: int
    seconds: float
    workers: int
    device: str
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told.

    Attributes:
        folder: URL of the `out` folder.
        data: Folder of the prepared data, on the driver's machine.
        resume: Step of the checkpoint to go on from.
        note: Called with a sentence about something that the user should know.
        report: Called after each step with its number, that of all steps, the loss, and the source; see `Progress.trained`.
        gpu: Whether it trains on a GPU; None for what the job says, and by default where there is one.
        threads: CPU threads; None for torch's default.
    """

    job: Training
    spec: ModelSpec
    folder: str
    data: Path
    resume: int | None
    budget_tokens: int
    note: Callable[[str], None]
    report: Callable[[int, int, float, str], None]
    gpu: bool | None = None
    threads: int | None = None


def train_func(settings: Settings) -> None:
    """Train in this process, which is one of the workers."""
    import torch
    import torch.distributed as dist

    from pipeline.train.collate import Collator
    from pipeline.train.data import open_data
    from pipeline.train.evaluate import read_held_out
    from pipeline.train.losses import build_losses
    from pipeline.train.module import model_of
    from pipeline.train.trainer import Parts

    job, spec, train = settings.job, settings.spec, settings.job.train
    asked = job.run.gpus_per_worker if settings.gpu is None else settings.gpu
    gpu = torch.cuda.is_available() if asked == "auto" else bool(asked)
    if gpu and not torch.cuda.is_available():
        raise ConfigError(
            "run.gpus_per_worker is 1, and torch finds no GPU here; set it to 0, or install torch for CUDA"
        )
    if settings.threads is not None and not gpu:
        torch.set_num_threads(settings.threads)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(_local_data(settings, Path(scratch)))
        model = model_of(train, spec, device="cuda" if gpu else "cpu")
        parts = Parts(model, build_losses(model, job, data), data, Collator(spec, train.tasks))
        held_out = read_held_out(train.evaluate) if train.evaluate and first else None
        fit(parts, settings, held_out)


def _local_data(settings: Settings, scratch: Path) -> Path:
    """Return the folder of the prepared data on this machine, fetched from the store if it is not here."""
    if settings.data.exists():
        return settings.data
    if storage.is_local(settings.folder):
        raise ConfigError(
            f"{str(settings.data)!r} is not on the machine of a worker; with more than one machine, out.uri must be on a disk "
            f"that they share, or in a store such as s3://"
        )
    for shard in storage.walk(place(settings.folder, settings.data.name)):
        file = scratch / shard.path.rpartition(f"/{settings.data.name}/")[2]
        content = storage.read(shard.path)
        with disk_errors(scratch):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return scratch


def fit(parts: Parts, settings: Settings, held_out: Measures | None) -> None:
    """Train the parts of a job to the end, and write the trained weights.

    Raises:
        Diverged: the loss is not finite.
        StorageError: a checkpoint cannot be written.
    """
    from pipeline.train.callbacks import Bookkeeper
    from pipeline.train.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if settings.resume is not None:
            Checkpoints(settings.folder).fetch(settings.resume, scratch)
        trainer = Trainer(parts, settings.job.train, scratch, settings.budget_tokens, settings.note)
        books = Bookkeeper(trainer, settings.folder, held_out, settings.report, settings.note)
        trainer.add_callback(books)
        try:
            if settings.resume is None:
                trainer.train()
            else:
                books.load(scratch)
                trainer.resume(settings.resume)
        except Diverged:
            books.write_records()
            raise
    if trainer.args.process_index:
        return
    state, stopping = trainer.state, books.stopping
    fitted = Fitted(
        steps=state.global_step,
        planned_steps=state.max_steps,
        stopped="finished" if state.global_step >= state.max_steps else "patience",
        best_step=None if held_out is None else stopping.best_step,
        best_value=stopping.best,
        first_value=stopping.scores.get(0),
        tokens=sum(record["tokens"] for record in books.records),
        seconds=sum(record["seconds"] for record in books.records),
        workers=trainer.args.world_size,
        device=parts.model.device.type,
        budget_tokens=trainer.budget_tokens,
    )
    books.write_records()
    save_trained(settings.folder, books.weights(), asdict(fitted))
