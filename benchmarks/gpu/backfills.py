"""Share of the time that a GPU computes during a backfill, and the check that there is a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer

from actors.encoders import load_encoder
from actors.unit.receipt import Receipt
from benchmarks.gpu.measure import Budgets, busy_share
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import let_go
from benchmarks.scale.small import Stopwatch

# Texts that the encoder alone is timed with.
_ALONE = 20_000
_FILE_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Backfill:
    """A backfill on one GPU, from the first receipt to the last.

    Attributes:
        replicas: Encoders on the GPU.
        seconds, rate: Duration and tokens a second; of pages, pages a second.
        alone: Rate of one encoder that gets the same rows prepared and never waits.
        busy: Share of that encoder's time in which kernels run.
    """

    model: str
    replicas: int
    seconds: float
    rate: float
    alone: float
    busy: float

    @property
    def idle(self) -> float:
        """Share of the time in which no kernel runs: they take the same time for the same rows."""
        return 1 - self.busy * self.rate / self.alone


class Watch(Stopwatch):
    """A reporter that keeps the receipts of a backfill too."""

    def __init__(self) -> None:
        super().__init__()
        self.receipts: list[Receipt] = []

    def finished_unit(self, receipt: Receipt) -> None:
        super().finished_unit(receipt)
        self.receipts.append(receipt)

    def seconds(self, encoders: int) -> float:
        """Return the seconds until the last receipt from the first of each encoder, which is the end of its start."""
        return self.ended[-1] - self.ended[encoders - 1]


def write_model(shape: Shape, tokenizer: Path, folder: Path) -> Path:
    """Write a BERT of random weights with the vocabulary of another model, so that it reads real texts."""
    return shape.write(folder, tokenizer=Tokenizer.from_file(str(tokenizer / "tokenizer.json")))


def run_backfills(
    texts: Sequence[str],
    model: Path,
    name: str,
    *,
    rows: int,
    replicas: Sequence[int],
    device: torch.device,
    address: str = "local",
) -> list[Backfill]:
    """Time the encoder alone, then a backfill of `rows` texts for each number of replicas on the GPU."""
    encoder = load_encoder(str(model), device=str(device))
    ids = encoder.tokenizer.tokenize([_text(texts, row) for row in range(min(rows, _ALONE))]).ids
    budgets = Budgets(encoder, ids)
    rates = budgets.best(3, device)
    busy = busy_share(budgets.encode, device)
    del encoder, budgets
    let_go(device)
    found = []
    for count in replicas:
        share = 1 / count if device.type == "cuda" else 0
        watch = _backfill(texts, model, rows=rows, gpus_per_replica=share, address=address)
        seconds = watch.seconds(count)
        rate = sum(receipt.tokens for receipt in watch.receipts[count:]) / seconds
        found.append(Backfill(name, count, seconds, rate, sorted(rates)[len(rates) // 2], busy))
    return found


def _backfill(texts: Sequence[str], model: Path, *, rows: int, gpus_per_replica: float, address: str) -> Watch:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for start in range(0, rows, _FILE_ROWS):
            numbers = range(start, min(start + _FILE_ROWS, rows))
            table = {"id": [f"row {row}" for row in numbers], "text": [_text(texts, row) for row in numbers]}
            pq.write_table(pa.table(table), corpus / f"part-{start // _FILE_ROWS:05d}.parquet")
        source = {"uri": f"{corpus}/*.parquet", "id": "id", "text": "text"}
        run = {"address": address, "gpus_per_replica": gpus_per_replica}
        return watched(source, {"model": str(model)}, f"{folder}/table", rows=min(rows, 100_000), run=run)


def watched(
    source: Mapping[str, str], encoder: Mapping[str, str | None], table: str, *, rows: int, run: Mapping[str, object]
) -> Watch:
    """Backfill `rows` rows in at least ten units, or there is no time between the first receipt and the last."""
    from pipeline.job.config import parse_job
    from pipeline.run.backfill import backfill

    units = {"unit_rows": max(1, rows // 10)}
    job = {"source": source, "table": {"uri": table}, "encoder": encoder, "run": {**run, **units}}
    watch = Watch()
    backfill(parse_job(job), watch)
    return watch


def _text(texts: Sequence[str], row: int) -> str:
    """Return a text that no other row has: equal texts of a unit would be encoded once."""
    return f"{row} {texts[row % len(texts)]}"


def require_gpu() -> torch.device:
    """Return the first GPU.

    Raises:
        SystemExit: torch sees none.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA GPU here: bench-gpu measures GPUs only. Run it on a machine that has "
            f"one, with a torch built for CUDA; `make bench` measures on a CPU"
        )
    return torch.device("cuda", 0)
