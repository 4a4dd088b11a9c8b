"""Idle share of a GPU during a backfill, and the check that there is a GPU."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch


class Utilisation(threading.Thread):
    """Reads the GPU's utilisation from the driver five times a second."""

    def __init__(self, gpu: int) -> None:
        super().__init__(daemon=True)
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "200",
                "-i",
                str(gpu),
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
        """Stop reading."""
        self._process.terminate()
        self._process.wait()
        self.join()

    def idle(self, start: float, stop: float) -> float:
        """Mean share of the time between two moments in which the GPU had nothing to do."""
        busy = [percent for at, percent in self.samples if start <= at <= stop]
        return 1 - statistics.mean(busy) / 100 if busy else float("nan")


def backfill_idle(texts: Sequence[str], model: Path, *, rows: int, gpus_per_replica: float) -> dict[str, float]:
    """A backfill of `rows` rows: seconds, rows a second and the GPU's idle share from the first receipt to the last."""
    import pyarrow.parquet as pq

    from benchmarks.scale.small import Stopwatch
    from pipeline.job.config import parse_job
    from pipeline.run.backfill import backfill

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
        watch, gpu = Stopwatch(), Utilisation(0)
        gpu.start()
        backfill(job, watch)
        gpu.stop()
    first, last = watch.begun + watch.ended[0], watch.begun + watch.ended[-1]
    return {"seconds": last - first, "rows/s": rows / (last - first), "idle": gpu.idle(first, last)}


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
