"""Exact search over a table: one question and many, against numpy, FAISS and usearch, in turns.

Run as `python -m benchmarks search`. The table has random unit vectors and the embedding spec of all-MiniLM-L6-v2, so that
the command can be timed as a whole. The peers get the same vectors as float32 in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors import kernels
from actors.encoders.settings import EncoderSettings
from actors.encoders.spec import describe
from actors.schema import EMBEDDING
from actors.unit.receipt import DataFile
from actors.unit.writer import parquet_bytes
from actors.vectors import VectorColumn, dense
from benchmarks.race.machine import commit, hardware, versions
from benchmarks.race.peers import ROOT, install, python_of
from pipeline.job.encoder import Encoder
from pipeline.job.fingerprint import fingerprint
from pipeline.scan.table_scan import TableScan
from pipeline.scan.vector_cache import VectorCache
from pipeline.table import delta_table
from pipeline.table.commit import Publication, publish

K = 10
_FILE_ROWS = 62_500
_ENVIRONMENT = "search"
PEERS = {"numpy": "numpy, float32", "faiss": "FAISS IndexFlatIP", "usearch": "usearch, exact=True"}


@dataclass(frozen=True, slots=True)
class Result:
    """Medians in seconds, by way, for one question and for many; rates of the machine; seconds of the whole command."""

    rows: int
    dim: int
    many: int
    threads: int
    one_s: dict[str, float]
    many_s: dict[str, float]
    bytes_per_s: float
    flops_per_s: float
    command_s: dict[str, float]
    left_out: list[str]


def write_table(
    url: Path, model: Path, parts: Iterable[Sequence[pa.Array]], lineage: Mapping[str, str] | None = None
) -> None:
    """Publish a table with the embedding spec of a model.

    Args:
        url: Folder of the table.
        model: Folder of the checkpoint.
        parts: The stored columns of vectors of each file.
        lineage: What the embedding spec says besides, as of more vectors than the model makes.
    """
    spec = describe(EncoderSettings(str(model)))
    embedding_spec = delta_table.EmbeddingSpec(
        fingerprint(spec.lineage()),
        {**spec.lineage(), **(lineage or {}), "model": str(model)},
        Encoder(model=str(model)).model_dump(mode="json"),
    )
    fields = [field for column in embedding_spec.outputs for field in column.fields]
    schema = pa.schema([("id", pa.string()), *fields, ("_hash", pa.string())])
    files: list[DataFile] = []
    start = 0
    for vectors in parts:
        rows = range(start, start + len(vectors[0]))
        ids, hashes = (pa.array([f"{row:0{digits}d}" for row in rows]) for digits in (9, 64))
        table = pa.Table.from_arrays([ids, *vectors, hashes], schema=schema)
        data, statistics_ = parquet_bytes(table, "{}", embedding_spec.outputs)
        path = f"data/made/{len(files):06d}.parquet"
        (url / path).parent.mkdir(parents=True, exist_ok=True)
        (url / path).write_bytes(data)
        files.append(DataFile(path, len(data), len(rows), {}, statistics_, None))
        start = rows.stop
    publish(str(url), Publication("made", "made", "backfill", embedding_spec, schema, (), None, tuple(files)))


def stored_dense(vectors: npt.NDArray[np.float32]) -> pa.ChunkedArray:
    """Return vectors as a table stores them with float16's precision."""
    return VectorColumn(EMBEDDING, "dense", vectors.shape[1]).stored(pa.chunked_array([dense(vectors)]), "float16")


class _Peer:
    """A worker process with the vectors in memory."""

    def __init__(self, way: str, vectors: Path, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._process = subprocess.Popen(
            [str(python_of(_ENVIRONMENT)), "-m", "benchmarks.race.workers.nearest", way, str(vectors), str(threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(names, str(threads))},
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def search(self, queries: Path) -> tuple[float, list[list[int]]]:
        """Return the seconds of a search and the rows."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"queries": str(queries), "k": K}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["s"], answer["rows"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def median_s(call: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _product_type() -> torch.dtype:
    """Return the type in which a scan multiplies many questions on this processor."""
    return torch.bfloat16 if kernels.kernels_for(torch.bfloat16, torch.device("cpu")) else torch.float32


def _limits(dim: int, many: int) -> tuple[float, float]:
    """Return the memory rate (a sum over 1 GiB) and the best rate of matrix products of three shapes, with all threads."""
    memory = torch.ones(1 << 28)
    bytes_per_s = memory.nbytes / median_s(memory.sum, 9)
    left, flops_per_s = torch.randn(many, dim).to(_product_type()), 0.0
    for rows in (512, 4096, 16_384):
        right = torch.randn(rows, dim).to(_product_type())
        seconds = median_s(lambda right=right: left @ right.T, 15)  # type: ignore[misc]
        flops_per_s = max(flops_per_s, 2 * many * dim * rows / seconds)
    return bytes_per_s, flops_per_s


def race(
    work: Path,
    model: Path,
    *,
    rows: int,
    dim: int,
    many: int,
    repeats: int,
    print_progress: Callable[[str], None],
) -> Result:
    """Time all ways in turns on one table, and check that they find the same rows."""
    work.mkdir(parents=True, exist_ok=True)
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(rows, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = random.normal(size=(many, dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    table = work / f"table-{rows}-{dim}"
    if not table.exists():
        print_progress("writing the table")
        files_of = (vectors[start : start + _FILE_ROWS] for start in range(0, rows, _FILE_ROWS))
        write_table(table, model, ([stored_dense(part)] for part in files_of))
    files = {"one": work / "one.npy", "many": work / "many.npy", "vectors": work / "vectors.npy"}
    np.save(files["one"], queries[:1])
    np.save(files["many"], queries)
    np.save(files["vectors"], vectors)
    del vectors
    opened = delta_table.need_table(str(table))
    embedding_spec = delta_table.embedding_spec_of(opened)
    assert embedding_spec is not None
    cache = VectorCache(work / "cache", 1 << 40)
    print_progress("filling the cache")
    scan = TableScan(opened, embedding_spec.outputs, cache)
    scan.nearest(dense(queries[:1]), K)
    uncached = TableScan(opened, embedding_spec.outputs, None)
    failed = install(_ENVIRONMENT, print_progress)
    left_out = [] if failed is None else [failed]
    peers = {} if failed else {way: _Peer(way, files["vectors"], threads) for way in PEERS}
    one: dict[str, list[float]] = {}
    all_: dict[str, list[float]] = {}
    limits = []
    for turn in range(repeats + 1):
        print_progress(f"turn {turn} of {repeats}")
        limits.append(_limits(dim, many))
        for name, given, found in (("one", queries[:1], one), ("many", queries, all_)):
            answers = {}
            started = time.perf_counter()
            best = scan.nearest(dense(given), K)
            found.setdefault("vectide", []).append(time.perf_counter() - started)
            answers["vectide"] = [int(row) for row in best["id"].to_pylist()]
            if name == "one":
                started = time.perf_counter()
                uncached.nearest(dense(given), K)
                found.setdefault("vectide without the cache", []).append(time.perf_counter() - started)
            for way, peer in peers.items():
                took_s, numbers = peer.search(files[name])
                found.setdefault(PEERS[way], []).append(took_s)
                answers[way] = [row for row_list in numbers for row in row_list]
            for way, answer in answers.items():
                same = sum(len({*a} & {*b}) for a, b in zip(_lists(answer), _lists(answers["vectide"]), strict=True))
                if same < 0.98 * len(answer):  # the peers' vectors were not rounded
                    raise SystemExit(f"{way} finds other rows: {same} of {len(answer)} are the same")
    for peer in peers.values():
        peer.close()
    return Result(
        rows=rows,
        dim=dim,
        many=many,
        threads=threads,
        one_s={way: statistics.median(times[1:]) for way, times in one.items()},
        many_s={way: statistics.median(times[1:]) for way, times in all_.items()},
        bytes_per_s=statistics.median(limit[0] for limit in limits[1:]),
        flops_per_s=statistics.median(limit[1] for limit in limits[1:]),
        command_s=_command(table, work / "cache", repeats),
        left_out=left_out,
    )


def _lists(numbers: list[int]) -> list[list[int]]:
    return [numbers[start : start + K] for start in range(0, len(numbers), K)]


def _command(table: Path, cache: Path, repeats: int) -> dict[str, float]:
    """Return the median seconds of the whole command, and of two parts of it in processes of their own."""
    environment = {**os.environ, "VECTIDE_CACHE": str(cache)}
    search = [sys.executable, "-m", "jobs", "search", str(table), "how do tides work", "--cache-size", "1024GiB"]
    model = "import sys; from pipeline.search.search import Searcher; Searcher(sys.argv[1], cache_size=None).encoder"
    parts = {
        "the whole command": search,
        "imports, table and model": [sys.executable, "-c", model, str(table)],
        "imports": [sys.executable, "-c", "import torch, deltalake, transformers, pipeline.search.search"],
    }

    def run(command: list[str]) -> None:
        subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)

    return {name: median_s(lambda command=command: run(command), repeats) for name, command in parts.items()}  # type: ignore[misc]


def markdown(result: Result, *, command: str, date: str) -> str:
    """Return the page of a result."""
    read = result.rows * (2 * result.dim + 4)
    multiplied = 2.0 * result.rows * result.dim * result.many
    ours, ours_many = result.one_s["vectide"], result.many_s["vectide"]
    facts = (
        f"{hardware()}. {versions('torch', 'numpy', 'pyarrow', 'deltalake')}; peers in "
        "`benchmarks/race/environments/search.txt`. Random unit vectors, the 10 nearest rows, medians of turns."
    )
    memory = (
        f"- One question reads {read / 1e9:.2f} GB at {read / ours / 1e9:.1f} GB/s: "
        f"{read / ours / result.bytes_per_s:.0%} of the machine's memory rate ({result.bytes_per_s / 1e9:.1f} GB/s, a sum "
        "over 1 GiB of float32 by torch in the same turns)."
    )
    products = (
        f"- {result.many:,} questions multiply at {multiplied / ours_many / 1e9:.0f} GFLOP/s: "
        f"{multiplied / ours_many / result.flops_per_s:.0%} of products alone in {str(_product_type()).removeprefix('torch.')} "
        f"({result.flops_per_s / 1e9:.0f} GFLOP/s, torch, the best of three shapes in the same turns)."
    )
    lines = [
        f"# Exact search of {result.rows:,} x {result.dim}, {date}",
        "",
        f"`{command}`, commit {commit()}, {result.threads} threads for each.",
        "",
        facts,
        "",
        f"| way | one question, ms | ratio to vectide | {result.many:,} questions, s | ratio to vectide |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, seconds in result.one_s.items():
        many = result.many_s.get(way)
        cells = f"{many:.2f} | {many / ours_many:.2f}" if many is not None else "- | -"
        lines.append(f"| {way} | {seconds * 1000:.1f} | {seconds / ours:.2f} | {cells} |")
    lines += [
        "",
        memory,
        products,
        *(f"- {name}: {seconds:.2f} s." for name, seconds in result.command_s.items()),
        *(f"- Left out: {reason}." for reason in result.left_out),
    ]
    return "\n".join(lines) + "\n"
