"""A training by `vectide train` against the trainer of sentence-transformers with the same batches and the same loss.

Run as `python -m benchmarks training-speed`. Texts are random words of the model's vocabulary, of mixed lengths. Every way
trains the whole model in float32 and without dropout, in a process of its own, in turns. sentence-transformers runs twice:
with GradCache, and without it. The first step of each, which warms up, does not count.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.race.machine import commit, hardware, versions
from benchmarks.race.peers import ROOT
from pipeline.job.training import Training

SHORTEST, MEDIAN, LONGEST, SPREAD = 10, 50, 256, 0.8  # tokens; the spread is of the logarithm
_LEARNING_RATE, _NO_LIMIT = 2e-5, 1e6


@dataclass
class Steps:
    """The steps of one training.

    Attributes:
        losses: Loss of each step, as the sum of both directions.
        seconds: Time of each step but the first.
        cpu: CPU seconds of each step but the first.
        peak: Largest memory of the process, in bytes.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0
    _last: tuple[float, float] | None = None

    def add(self, loss: float) -> None:
        """Note the end of a step."""
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.seconds.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now
        self.losses.append(loss)
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def make(work: Path, model: Path, *, rows: int) -> None:
    """Write pairs of random words: those of a passage are, in part, those of its query."""
    random = np.random.default_rng(0)
    words = [
        word
        for word in json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        if word.isascii() and word.isalpha() and len(word) > 3
    ]

    def lengths() -> list[int]:
        drawn = np.exp(random.normal(np.log(MEDIAN), SPREAD, rows))
        return [int(each) - 2 for each in np.clip(drawn, SHORTEST, LONGEST)]  # two special tokens

    queries = [random.choice(words, length) for length in lengths()]
    passages = [
        np.concatenate([random.permutation(query)[: length // 2], random.choice(words, length)])[:length]
        for query, length in zip(queries, lengths(), strict=True)
    ]
    columns = {"query": [" ".join(each) for each in queries], "passage": [" ".join(each) for each in passages]}
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), work / "pairs.parquet")


def job_of(work: Path, model: Path, out: Path, *, rows: int, batch_rows: int) -> Training:
    """Return the job of a training of one epoch."""
    train = {
        "model": str(model),
        "method": "full",
        "batch_rows": batch_rows,
        "max_steps": rows // batch_rows,
        "max_tokens": LONGEST,
        "learning_rate": _LEARNING_RATE,
        "warmup": 0.0,
        "max_grad_norm": _NO_LIMIT,
    }
    return Training.model_validate(
        {
            "train": train,
            "data": [{"uri": str(work / "pairs.parquet")}],
            "out": {"uri": str(out)},
            "run": {"address": "inline"},
        }
    )


def prepared(job: Training, work: Path) -> Any:
    """Return the prepared data."""
    from pipeline.train.prepare import prepare
    from pipeline.train.run import Silent

    return prepare(job, work / "data", (), Silent())


def run_vectide(work: Path, model: Path, *, rows: int, batch_rows: int) -> Steps:
    """Train with `vectide train`, from prepared data to trained weights."""
    import shutil

    from pipeline.train.on_ray import train_on_ray
    from pipeline.train.resolve import resolve
    from pipeline.train.run import Silent

    class Watch(Silent):
        """Notes the steps."""

        def trained(self, step: int, steps: int, loss: float, source: str) -> None:
            """See `Progress`."""
            del step, steps, source
            found.add(loss)

    found, out = Steps(), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    job, spec = resolve(job_of(work, model, out, rows=rows, batch_rows=batch_rows))
    train_on_ray(job, spec, str(out), prepared(job, work).folder, Watch())
    return found


def run_sentence_transformers(work: Path, model: Path, *, rows: int, batch_rows: int, cached: bool = False) -> Steps:
    """Train with the trainer of sentence-transformers, on the batches of `run_vectide`."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    from pipeline.train.sampler import SourceBatchSampler

    class Trainer(SentenceTransformerTrainer):
        """Notes the steps."""

        def training_step(self, *args: Any, **settings: Any) -> Any:
            """Train a step; the loss is the mean of both directions."""
            loss = super().training_step(*args, **settings)
            self.last = 2 * float(loss)
            return loss

    class Watch(TrainerCallback):
        """Notes the ends of steps, after the optimizer's."""

        def on_step_end(self, *args: Any, **settings: Any) -> None:
            """See `TrainerCallback`."""
            del args, settings
            found.add(trainer.last)

    found = Steps()
    [source] = prepared(job_of(work, model, work / "out", rows=rows, batch_rows=batch_rows), work).sources
    order = [row for batch in SourceBatchSampler([source], batch_rows) for row in batch]
    pairs = source.take(order)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = SentenceTransformer(str(model), device="cpu", config_kwargs=quiet)
    encoder.max_seq_length = LONGEST
    both: Any = ("query_to_doc", "doc_to_query")
    kind: Any = CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss
    loss = kind(encoder, directions=both, partition_mode="per_direction")

    def in_order(dataset: Any, **settings: Any) -> DefaultBatchSampler:
        return DefaultBatchSampler(SequentialSampler(dataset), **settings)

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "sentence_transformers"),
        per_device_train_batch_size=batch_rows,
        max_steps=rows // batch_rows,
        learning_rate=_LEARNING_RATE,
        warmup_steps=0,
        max_grad_norm=_NO_LIMIT,
        batch_sampler=in_order,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({name: pairs[name].to_pylist() for name in ("query", "passage")})
    trainer = Trainer(model=encoder, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Watch()])
    trainer.train()
    return found


WAYS: dict[str, Callable[..., Steps]] = {
    "vectide": run_vectide,
    "sentence-transformers": run_sentence_transformers,
    "sentence-transformers, GradCache": partial(run_sentence_transformers, cached=True),
}


def race(work: Path, model: Path, *, batch_rows: int, steps: int, repeats: int) -> dict[str, list[Steps]]:
    """Run each way in processes of its own, in turns."""
    rows = batch_rows * (steps + 1)
    make(work, model, rows=rows)
    found: dict[str, list[Steps]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, turns in found.items():
            command = [sys.executable, "-m", "benchmarks.training_speed", way, str(work), str(model)]
            done = subprocess.run(
                [*command, str(rows), str(batch_rows)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            turns.append(Steps(**json.loads(done.stdout.splitlines()[-1])))
    return found


def tokens_of(work: Path, model: Path, *, batch_rows: int, steps: int) -> int:
    """Return the tokens of all steps but the first."""
    from pipeline.train.sampler import SourceBatchSampler

    job = job_of(work, model, work / "out", rows=batch_rows * (steps + 1), batch_rows=batch_rows)
    [source] = prepared(job, work).sources
    batches = list(SourceBatchSampler([source], batch_rows))[1:]
    pairs = source.take([row for batch in batches for row in batch])
    return sum(len(text.split()) + 2 for name in ("query", "passage") for text in pairs[name].to_pylist())


def markdown(
    found: dict[str, list[Steps]], *, tokens: int, batch_rows: int, model: Path, command: str, date: str
) -> str:
    """Return the page of a race."""
    ours, *theirs = found.values()
    gap = max(abs(a - b) / b for peer in theirs for a, b in zip(ours[0].losses, peer[0].losses, strict=True))
    lines = [f"# Training of a whole model, {date}", "", f"`{command}`, commit {commit()}.", ""]
    lines += [f"{hardware()}. {versions('torch', 'transformers', 'sentence-transformers')}.", ""]
    lines += [
        f"{model.parent.name}, {len(ours[0].seconds)} steps of {batch_rows:,} pairs after a first one, {tokens:,} tokens, lengths lognormal from {SHORTEST} to",
        f"{LONGEST} with median {MEDIAN}; float32, no dropout, medians of {len(ours)} runs in turns. Tokens are those of the texts, without",
        f"padding. The losses of all steps differ by at most {gap:.1e} of their value. vectide uses GradCache for steps of more than",
        "`budget_tokens` tokens, 16,384 by default.",
        "",
        "| way | tokens a second | ratio | tokens a CPU second | ratio | peak memory, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    speeds = {
        way: [tokens / statistics.median(sum(getattr(turn, kind)) for turn in turns) for kind in ("seconds", "cpu")]
        for way, turns in found.items()
    }
    base = speeds["sentence-transformers"]
    for way, (wall, cpu) in speeds.items():
        peak = max(turn.peak for turn in found[way]) >> 20
        lines.append(f"| {way} | {wall:,.0f} | {wall / base[0]:.2f} | {cpu:,.0f} | {cpu / base[1]:.2f} | {peak:,} |")
    return "\n".join([*lines, ""])


def _worker(way: str, work: Path, model: Path, rows: int, batch_rows: int) -> None:
    found = asdict(WAYS[way](work, model, rows=rows, batch_rows=batch_rows))
    print(json.dumps({name: value for name, value in found.items() if name != "_last"}))


if __name__ == "__main__":
    _worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
