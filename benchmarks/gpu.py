"""What a CUDA card reaches: tokens a second and share of its bfloat16 limit by model shape, and its idle share in a backfill.

Called by `make bench-gpu`, as `python -m benchmarks gpu`. Weights are random, shapes are the published ones, token ids are
random in three mixes of lengths: what is measured does not depend on what a model knows. sentence-transformers runs the
shapes that it has without remote code, on the same ids in padded batches sorted by length, its best of a few batch sizes.
Everything but the idle share runs on a CPU too, which is how it is tested where there is no card.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.encoders import load_encoder
from benchmarks.race import machine
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3

Ints = npt.NDArray[np.int64]
BATCHES = (32, 128, 512)  # rows, of sentence-transformers
POOLING = {"word_embedding_dimension": 0, "pooling_mode_mean_tokens": True}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes.

    Attributes:
        family: "bert", "v2" (ALiBi and GEGLU) or "v3" (rotary positions and adapters).
    """

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    inner: int

    def operations(self, lengths: Sequence[int]) -> float:
        """Floating point operations of its matrix products over texts of these lengths, padding not counted."""
        up = 2 if self.family == "v2" else 1  # GEGLU goes up twice
        linear = 2 * self.layers * (4 * self.hidden**2 + (up + 1) * self.hidden * self.inner) * sum(lengths)
        return float(linear + 4 * self.layers * self.hidden * sum(length * length for length in lengths))

    def write(self, folder: Path) -> Path:
        """A checkpoint of random weights."""
        sizes: dict[str, Any] = {
            "hidden": self.hidden, "layers": self.layers, "heads": self.heads, "inner": self.inner,
        }  # fmt: skip
        if self.family == "v2":
            return write_jina_v2(folder, **sizes)
        if self.family == "v3":
            return write_jina_v3(folder, **sizes)
        pooling = {**POOLING, "word_embedding_dimension": self.hidden}
        return write_bert(folder, positions=512, max_tokens=512, pooling=pooling, **sizes)


SHAPES = (
    Shape("all-MiniLM-L6-v2", "bert", 6, 384, 12, 1536),
    Shape("BERT base", "bert", 12, 768, 12, 3072),
    Shape("BERT large", "bert", 24, 1024, 16, 4096),
    Shape("Jina v2 base", "v2", 12, 768, 12, 3072),
    Shape("Jina v3", "v3", 24, 1024, 16, 4096),
)


def mixes(tokens: int) -> dict[str, Ints]:
    """Lengths of texts, `tokens` together, by mix."""
    random = np.random.default_rng(0)
    drawn = {
        "short": random.integers(20, 51, tokens),
        "long": random.integers(200, 257, tokens),
        "heavy-tailed": np.clip(random.lognormal(4.2, 0.9, tokens), 8, 512).astype(np.int64),
    }
    return {name: lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1] for name, lengths in drawn.items()}


def random_ids(lengths: Ints, vocabulary: int) -> pa.ListArray:
    """Token ids, one list a text."""
    values = np.random.default_rng(1).integers(5, vocabulary, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def wait(device: torch.device) -> None:
    """Until the card has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit(device: torch.device, size: int) -> float:
    """Operations a second of square bfloat16 products: the best of a few rounds."""
    x, y = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            x @ y
        wait(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def timed(call: Callable[[], object], tokens: int, repeats: int, device: torch.device) -> list[float]:
    """Tokens a second of each repeat, after a warm-up."""
    rates = []
    for number in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number:
            rates.append(tokens / (time.perf_counter() - started))
    return rates


@dataclass(slots=True)
class Row:
    """One shape on one mix; tokens a second."""

    shape: Shape
    mix: str
    lengths: Ints
    ours: list[float]
    theirs: list[float] = field(default_factory=list)
    out_of_memory: int = 0
    budget_tokens: int = 0


def measure_shape(shape: Shape, by_mix: dict[str, Ints], *, device: torch.device, repeats: int) -> list[Row]:
    """Ours on every mix, and sentence-transformers where it knows the shape."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = shape.write(Path(folder) / "model")
        # By the card's own precision: bfloat16 where it has it.
        encoder = load_encoder(str(checkpoint), device=str(device))
        vocabulary = int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
        for mix, lengths in by_mix.items():
            ids = random_ids(lengths, vocabulary)
            rates = timed(partial(encoder.encode_tokens, ids), int(lengths.sum()), repeats, device)
            stats = encoder.stats
            rows.append(Row(shape, mix, lengths, rates, [], stats.out_of_memory, stats.budget_tokens))
        del encoder
        if shape.family == "bert":
            for row, rates in zip(
                rows, sentence_transformers(checkpoint, by_mix, vocabulary, device, repeats), strict=True
            ):
                row.theirs = rates
    return rows


def sentence_transformers(
    checkpoint: Path, by_mix: dict[str, Ints], vocabulary: int, device: torch.device, repeats: int
) -> list[list[float]]:
    """The best batch size's rates, for each mix: padded batches from the longest to the shortest, as `encode` makes them."""
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = SentenceTransformer(str(checkpoint), device=str(device), model_kwargs={"dtype": dtype})
    found = []
    for lengths in by_mix.values():
        ids = random_ids(lengths, vocabulary)
        order = np.argsort(-lengths, kind="stable")

        def encode(rows: int, ids: pa.ListArray = ids, lengths: Ints = lengths, order: Ints = order) -> None:
            with torch.inference_mode():
                parts = []
                for start in range(0, len(order), rows):
                    batch = order[start : start + rows]
                    tokens = np.zeros((len(batch), int(lengths[batch[0]])), np.int64)
                    for place, row in enumerate(batch):
                        tokens[place, : lengths[row]] = ids[int(row)].values.to_numpy()
                    features = {
                        "input_ids": torch.from_numpy(tokens),
                        "attention_mask": torch.from_numpy(tokens > 0).long(),
                    }
                    sent = {name: tensor.to(device, non_blocking=True) for name, tensor in features.items()}
                    parts.append(model(sent)["sentence_embedding"])
                torch.cat(parts).float().cpu()

        total = int(lengths.sum())
        tries = [timed(partial(encode, rows), total, repeats, device) for rows in BATCHES]
        found.append(max(tries, key=statistics.median))
    return found


class Utilisation(threading.Thread):
    """Asks the driver five times a second for how much of the time the card had work; each answer is over its last moments."""

    def __init__(self, card: int) -> None:
        super().__init__(daemon=True)
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "200",
                "-i",
                str(card),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.samples.append((time.perf_counter(), float(line)))

    def stop(self) -> None:
        """End the asking."""
        self._process.terminate()
        self._process.wait()
        self.join()

    def idle(self, start: float, stop: float) -> float:
        """Mean share of the time between two moments in which the card had nothing to do."""
        busy = [percent for at, percent in self.samples if start <= at <= stop]
        return 1 - statistics.mean(busy) / 100 if busy else float("nan")


def backfill_idle(texts: Sequence[str], model: Path, *, rows: int, gpus_per_replica: float) -> dict[str, float]:
    """A backfill of `rows` rows: seconds, rows a second and the card's idle share from the first receipt to the last."""
    import pyarrow.parquet as pq

    from benchmarks.scale.small import Stopwatch
    from pipeline.config import parse_job
    from pipeline.run import backfill

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        step = 50_000
        for start in range(0, rows, step):
            # A number makes each text another one: equal texts of a unit would be encoded once.
            numbers = range(start, min(start + step, rows))
            table = {
                "id": [f"row {row}" for row in numbers],
                "text": [f"{row} {texts[row % len(texts)]}" for row in numbers],
            }
            pq.write_table(pa.table(table), corpus / f"part-{start // step:05d}.parquet")
        job = parse_job(
            {
                "source": {"uri": f"{corpus}/*.parquet", "id": "id", "text": "text"},
                "table": {"uri": f"{folder}/table"},
                "encoder": {"model": str(model)},
                "run": {"address": "local", "gpus_per_replica": gpus_per_replica},
            }
        )
        watch, card = Stopwatch(), Utilisation(0)
        card.start()
        backfill(job, watch)
        card.stop()
    first, last = watch.begun + watch.ended[0], watch.begun + watch.ended[-1]
    return {"seconds": last - first, "rows/s": rows / (last - first), "idle": card.idle(first, last)}


def require_card() -> torch.device:
    """The first card.

    Raises:
        SystemExit: torch sees none.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA card here: bench-gpu measures cards only. Run it on a machine that has "
            f"one, with a torch built for CUDA; `make bench` measures on a CPU"
        )
    return torch.device("cuda", 0)


def markdown(rows: list[Row], bound: float, idle: dict[float, dict[str, float]], *, command: str, date: str) -> str:
    """The page."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no card"
    lines = [
        "# Encoders on a card",
        "",
        f"{date}, commit {machine.commit()}. Written by `{command}`.",
        "",
        f"- Card: {name}; square bfloat16 products reach {bound / 1e12:,.1f} TFLOP/s",
        f"- Hardware: {machine.hardware()}",
        f"- Versions: {machine.versions('torch', 'sentence-transformers', 'transformers', 'ray')}",
        "- Random weights of the published shapes, token ids in, vectors on the host out; medians",
        "",
        "| shape | mix | tokens/s | range | share of the limit | sentence-transformers bfloat16 | x | out of memory | budget |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = statistics.median(row.ours)
        share = row.shape.operations(row.lengths.tolist()) / int(row.lengths.sum()) * rate / bound
        base = statistics.median(row.theirs) if row.theirs else None
        against = f"{base:,.0f} | {rate / base:.2f}" if base else "needs remote code | "
        lines.append(
            f"| {row.shape.name} | {row.mix} | {rate:,.0f} | {min(row.ours):,.0f} to {max(row.ours):,.0f} | {share:.1%} | {against} "
            f"| {row.out_of_memory} | {row.budget_tokens:,} |"
        )
    if idle:
        lines += [
            "",
            "A backfill of docstrings with all-MiniLM-L6-v2 on this card, from the first receipt to the last:",
            "",
        ]
        lines += ["| replicas a card | seconds | rows/s | card idle |", "|---:|---:|---:|---:|"]
        for share, found in idle.items():
            lines.append(f"| {1 / share:.0f} | {found['seconds']:.1f} | {found['rows/s']:,.0f} | {found['idle']:.1%} |")
    return "\n".join(lines) + "\n"
