"""The dry run of a training: what would be read, trained and written. `vectide plan` and `vectide doctor` call it.

The rows are read and prepared as a training would, in a temporary folder, so everything that the data does not allow is found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import storage
from actors.encoders.spec import ModelSpec
from pipeline.job.training import Training
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.data import TrainingData
from pipeline.train.evaluate import read_held_out
from pipeline.train.prepare import prepare
from pipeline.train.record import open_record, settings_of
from pipeline.train.resolve import resolve
from pipeline.train.run import Silent
from pipeline.train.sampler import epoch_steps

_SAMPLED = 256  # rows of each source


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a training would do.

    Attributes:
        out: URL of the folder of the result.
        model: The model, with its family.
        stage: Stage and method, and of an adapter its tasks, rank and alpha.
        parameters: Parameters that are trained, and those of the model.
        rows: Rows of all sources that can be used.
        counts: For each source the counts of its rows.
        steps: Steps of the whole training.
        tokens: Tokens of all steps, by a sample of the rows.
        held_out: Held-out queries and documents; None without `train.evaluate`.
        notes: What should be known of the held-out data, a sentence each.
        done: "finished", or the step from which the training goes on, or None if it has not begun.
    """

    out: str
    model: str
    stage: str
    parameters: tuple[int, int]
    rows: int
    counts: Mapping[str, Mapping[str, int]]
    steps: int
    tokens: int
    held_out: tuple[int, int] | None
    notes: tuple[str, ...]
    done: str | int | None


def plan_training(job: Training) -> TrainingPlan:
    """Return what a training would do, after all checks that it makes before the first step.

    Raises:
        ConfigError: as `pipeline.train.run.train` does.
        DataError: rows cannot be read, or too few of them can be used.
        StorageError: a store or a disk failed.
    """
    job, spec = resolve(job)
    train, out = job.train, storage.absolute(job.out.uri)
    record = open_record(out, settings_of(job, spec))
    held_out = read_held_out(train.evaluate) if train.evaluate else None
    with tempfile.TemporaryDirectory(prefix="vectide-plan-") as folder:
        data = prepare(job, Path(folder), frozenset() if held_out is None else held_out.text_hashes, Silent())
        steps = sum(epoch_steps(data.sources, train.batch_rows)) * train.epochs
        steps = min(steps, train.max_steps or steps)
        tokens = round(_tokens_a_row(job, spec, data) * train.batch_rows * steps)
    adapter = (
        f", adapter {' and '.join(train.tasks)} of rank {train.rank}, alpha {train.alpha:g}" if train.tasks else ""
    )
    return TrainingPlan(
        out=out,
        model=f"{spec.model}: {spec.family}, {spec.dim} dimensions, texts cut at {spec.max_tokens} tokens",
        stage=f"{train.stage}, {train.method}{adapter}",
        parameters=_parameters(job, spec),
        rows=sum(source.rows for source in data.sources),
        counts=data.counts,
        steps=steps,
        tokens=tokens,
        held_out=None if held_out is None else (len(held_out.judged.queries), len(held_out.ids)),
        notes=() if held_out is None else held_out.notes,
        done="finished" if record.result is not None else Checkpoints(out).newest(),
    )


def _tokens_a_row(job: Training, spec: ModelSpec, data: TrainingData) -> float:
    """Return the tokens of a row of an average step, all its texts together, by the first rows of each source."""
    from pipeline.train.collate import Collator

    collate, steps = Collator(spec, job.train.tasks), epoch_steps(data.sources, job.train.batch_rows)
    total = 0.0
    for source, count in zip(data.sources, steps, strict=True):
        rows = min(source.rows, _SAMPLED)
        batch: dict[str, Any] = collate((source, source.take(range(rows))))
        total += count * sum(int(batch[f"{name}_attention_mask"].sum()) for name in source.columns) / rows
    return total / sum(steps)


def _parameters(job: Training, spec: ModelSpec) -> tuple[int, int]:
    """Return the number of trained parameters, and of all of the model. No weight of the model is read."""
    from torch import nn

    from actors.encoders.twins import empty_twin
    from actors.encoders.twins.factors import modules_of
    from actors.encoders.twins.lora import start_factors

    twin = empty_twin(spec)
    all_ = sum(parameter.numel() for parameter in twin.parameters())
    if job.train.method == "full":
        return all_, all_
    # Tables get factors only where an adapter to start from has some.
    started = {name for start in job.train.start_from or () for name in start_factors(twin, start).pairs}
    layers = [twin.get_submodule(name) for name in modules_of(twin)]
    widths = sum(layer.in_features + layer.out_features for layer in layers if isinstance(layer, nn.Linear))
    tables = [layer for name in started if isinstance(layer := twin.get_submodule(name), nn.Embedding)]
    widths += sum(table.num_embeddings + table.embedding_dim for table in tables)
    return len(job.train.tasks) * (job.train.rank or 0) * widths, all_
