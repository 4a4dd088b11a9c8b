"""One way to find the nearest vectors exactly, in the environment `search`: numpy, FAISS or usearch.

Started as `python -m benchmarks.race.workers.nearest WAY FILE THREADS`, where FILE has float32 vectors [rows, dim] (.npy).
Each line of standard input names a file of queries and k; the answer is a line with the seconds and the row numbers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Search = Callable[[Any, int], Any]


def by_numpy(vectors: Any, _threads: int) -> Search:
    """Products in float32 and a partial sort; numpy's BLAS takes its threads from the environment."""

    def search(queries: Any, k: int) -> Any:
        scores = queries @ vectors.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


def by_faiss(vectors: Any, threads: int) -> Search:
    """`IndexFlatIP`, float32."""
    import faiss  # type: ignore[import-not-found]

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda queries, k: index.search(queries, k)[1]


def by_usearch(vectors: Any, threads: int) -> Search:
    """`usearch.index.search` with `exact=True`, float32."""
    from usearch.index import MetricKind, search  # type: ignore[import-not-found]

    return lambda queries, k: np.atleast_2d(
        search(vectors, queries, k, MetricKind.IP, exact=True, threads=threads).keys
    )


WAYS = {"numpy": by_numpy, "faiss": by_faiss, "usearch": by_usearch}


def main() -> None:
    """Serve one way."""
    way, path, threads = sys.argv[1:]
    search = WAYS[way](np.load(path), int(threads))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        queries = np.load(request["queries"])
        started = time.perf_counter()
        rows = search(queries, request["k"])
        print(json.dumps({"s": time.perf_counter() - started, "rows": np.asarray(rows).tolist()}), flush=True)


if __name__ == "__main__":
    main()
