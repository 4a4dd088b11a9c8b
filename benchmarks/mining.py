"""Hard negatives from a table against `sentence_transformers.util.mine_hard_negatives`, with the memory of each.

Run as `python -m benchmarks mining`. Both get vectors that are there already: the encoding of passages, which
sentence-transformers does in each run, is not in its time. Vectors are random in clusters, so that thresholds have work.
Each runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.race.machine import commit, hardware, versions
from benchmarks.race.peers import ROOT

NEGATIVES, LAST_RANK, MARGIN = 7, 70, 0.05
_FILE_ROWS = 62_500
_CLUSTER = 50  # rows


def make(work: Path, model: Path, *, rows: int, queries: int, dim: int) -> None:
    """Write the table, the vectors, and the pairs."""
    from benchmarks.search import stored_dense, write_table

    random = np.random.default_rng(0)
    centres = random.normal(size=(-(-rows // _CLUSTER), dim)).astype(np.float32)
    vectors = np.repeat(centres, _CLUSTER, axis=0)[:rows] + 0.8 * random.normal(size=(rows, dim)).astype(np.float32)
    asked = vectors[:queries] + 0.5 * random.normal(size=(queries, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / "rows.npy", vectors)
    np.save(work / "queries.npy", asked)
    write_table(
        work / "table", model, ([stored_dense(vectors[at : at + _FILE_ROWS])] for at in range(0, rows, _FILE_ROWS))
    )
    texts = [f"q{number}" for number in range(queries)]
    ids = [f"{number:09d}" for number in range(queries)]
    pq.write_table(pa.table({"id": texts, "query": texts, "passage": ids}), work / "pairs.parquet")


def run_vectide(work: Path) -> list[list[str]]:
    """Mine from the table; return the negatives by pair."""
    from actors.vectors import dense
    from pipeline.mine.block import Rules
    from pipeline.mine.choose import Thresholds
    from pipeline.mine.mine import mine
    from pipeline.mine.positives import Source
    from pipeline.search.search import Searcher

    asked = np.load(work / "queries.npy", mmap_mode="r")
    source = Source(str(work / "pairs.parquet"), passage_id="passage", id="id")
    thresholds = Thresholds(NEGATIVES, last_rank=LAST_RANK, max_share=1 - MARGIN)
    out = work / f"negatives-{os.getpid()}"
    mine(
        Searcher(work / "table"),
        source,
        str(out),
        Rules(thresholds),
        encode=lambda texts: dense(np.array(asked[[int(text[1:]) for text in texts]])),
    )
    found = pq.read_table(out, columns=["pair_id", "negative_ids"]).to_pylist()
    by_pair = {row["pair_id"]: row["negative_ids"] for row in found}
    return [by_pair.get(f"q{number}", []) for number in range(len(asked))]


class _Stored:
    """A model whose vectors are there."""

    device = "cpu"

    def __init__(self, work: Path) -> None:
        self.rows, self.queries = np.load(work / "rows.npy"), np.load(work / "queries.npy")

    def encode_document(self, texts: list[str], **_: Any) -> npt.NDArray[np.float32]:
        return np.asarray(self.rows[[int(text) for text in texts]])

    def encode_query(self, texts: list[str], **_: Any) -> npt.NDArray[np.float32]:
        return np.asarray(self.queries[[int(text[1:]) for text in texts]])

    def similarity(self, one: Any, other: Any) -> Any:
        from sentence_transformers.util import dot_score

        return dot_score(one, other)

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        from sentence_transformers.util import pairwise_dot_score

        return pairwise_dot_score(one, other)


def run_sentence_transformers(work: Path) -> list[list[str]]:
    """Mine with sentence-transformers; return the negatives by pair, of those that have as many as were asked for."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    pairs = Dataset.from_parquet(str(work / "pairs.parquet")).select_columns(["query", "passage"])
    model: Any = _Stored(work)
    found = mine_hard_negatives(
        pairs,
        model,
        corpus=[f"{number:09d}" for number in range(len(model.rows))],
        range_max=LAST_RANK,
        relative_margin=MARGIN,
        num_negatives=NEGATIVES,
        output_format="n-tuple",
        verbose=False,
    )
    columns = [name for name in found.column_names if name.startswith("negative")]
    by_query = {row["query"]: [row[name] for name in columns] for row in found.to_list()}
    return [by_query.get(f"q{number}", []) for number in range(len(model.queries))]


WAYS = {"vectide": run_vectide, "sentence-transformers": run_sentence_transformers}


def race(work: Path, model: Path, *, rows: list[int], queries: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """Run each way in processes of its own, in turns; return medians, and the share of equal negatives."""
    results = []
    for count in rows:
        place = work / str(count)
        if not (place / "pairs.parquet").exists():
            make(place, model, rows=count, queries=queries, dim=dim)
        turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for way in (*WAYS, *list(WAYS) * (repeats - 1)):
            command = [sys.executable, "-m", "benchmarks.mining", way, str(place)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            turns[way].append(json.loads(done.stdout.splitlines()[-1]))
        ours, theirs = (json.loads((place / f"{way}.json").read_text()) for way in WAYS)
        both = [(one, other) for one, other in zip(ours, theirs, strict=True) if other]
        equal = sum(one == other for one, other in both) / max(1, len(both))
        for way, of in turns.items():
            middle = {name: sorted(turn[name] for turn in of)[len(of) // 2] for name in ("s", "cpu")}
            peak = max(turn["peak"] for turn in of)
            results.append({"rows": count, "way": way, **middle, "peak": peak, "equal": equal})
    return results


def markdown(results: list[dict[str, Any]], *, queries: int, dim: int, command: str, date: str) -> str:
    """Return the page of a race."""
    lines = [f"# Hard negatives from a table, {date}", "", f"`{command}`, commit {commit()}.", ""]
    lines += [f"{hardware()}. {versions('torch', 'numpy', 'pyarrow', 'sentence-transformers')}.", ""]
    lines += [
        f"{NEGATIVES} negatives among the nearest {LAST_RANK} for each of {queries:,} pairs, below {1 - MARGIN:.0%} of the"
    ]
    lines += [
        f"positive's score; {dim} dimensions. Both have the vectors before they start, and each is a process of its own:"
    ]
    lines += [
        "the seconds are those of the call, the memory is the peak of the process. The ratio is that of the CPU seconds.",
        "",
    ]
    lines += ["| rows | way | seconds | CPU seconds | ratio | peak memory, MiB |", "|---:|---|---:|---:|---:|---:|"]
    first = {each["rows"]: each["cpu"] for each in results if each["way"] == "vectide"}
    for each in results:
        row = f"{each['rows']:,} | {each['way']} | {each['s']:.1f} | {each['cpu']:.1f}"
        lines.append(f"| {row} | {each['cpu'] / first[each['rows']]:.2f} | {each['peak'] >> 20:,} |")
    equal = min(each["equal"] for each in results)
    lines += [
        "",
        f"Of the pairs that sentence-transformers keeps, {equal:.2%} have the same negatives in the same order (the",
    ]
    lines += ["table stores vectors with the precision of float16).", ""]
    return "\n".join(lines)


def _worker(way: str, work: Path) -> None:
    if way == "sentence-transformers":
        import datasets  # noqa: F401  (imports are not in the time)
        import sentence_transformers.util  # noqa: F401
    else:
        import pipeline.mine.mine  # noqa: F401
    started, worked = time.perf_counter(), time.process_time()
    found = WAYS[way](work)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    (work / f"{way}.json").write_text(json.dumps(found))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"s": seconds, "cpu": cpu, "peak": peak}))


if __name__ == "__main__":
    _worker(sys.argv[1], Path(sys.argv[2]))
