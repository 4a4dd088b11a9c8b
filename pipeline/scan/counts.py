"""Counts of the vectors of a pool that are nearer to each of many queries than one vector of its own.

The pool is in memory, once a machine: of this process, or in the object store of a Ray cluster. Queries come in parts, and
each is counted by itself, so memory does not depend on their number.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.schema import HASH
from actors.vectors import Floats, VectorColumn, dense
from pipeline.job.config import Run
from pipeline.scan.block import Block

QUERIES = 2048  # of a part; a good shape for the products
_ROWS = 1 << 16  # of a block
_PARTS_PER_CPU = 2

Counts = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Queries, each with a vector of its own.

    Attributes:
        numbers: Numbers of the queries, int64 [n].
        queries: Vectors of the queries, float32 [n, dim].
        own: Their own vectors, float32 [n, dim], as they are stored.
        keys: For each query the key of its own vector.
    """

    numbers: npt.NDArray[np.int64]
    queries: Floats
    own: Floats
    keys: pa.StringArray


class Counted(NamedTuple):
    """The counts of a part.

    Attributes:
        scores: Products of the queries with their own vectors, float32 [n]; the cosine if both have length 1.
        counts: Vectors of the pool that score strictly higher, int64 [n].
    """

    numbers: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    counts: Counts


class Pool:
    """Vectors that queries are compared with.

    Args:
        vectors: Parts of vectors as they are stored, float32 [n, dim], each with a key for each vector.
        column: The column that the vectors are from.
    """

    def __init__(self, vectors: Iterable[tuple[Floats, pa.StringArray]], column: VectorColumn) -> None:
        self._column = column
        self.blocks = [
            _block(vectors[start : start + _ROWS], keys[start : start + _ROWS], column)
            for vectors, keys in vectors
            for start in range(0, len(vectors), _ROWS)
        ]

    def counted(self, parts: Iterable[Part], most: int, run: Run) -> Iterator[Counted]:
        """Yield the counts of each part, in any order.

        A vector with the key of the query's own vector is not counted. All scores are computed alike, so no rounding lets
        an equal vector score higher.

        Args:
            parts: Queries.
            most: A larger count is given as this one.
            run: Where to compute: this process uses all of its cores, a Ray cluster those of its machines.

        Raises:
            VectideError: the cluster cannot be reached, or a worker failed.
        """
        if run.address in ("inline", "local") or (run.address == "auto" and "RAY_ADDRESS" not in os.environ):
            yield from (count(self.blocks, self._column, part, most) for part in parts)
            return
        import ray  # takes seconds

        from pipeline.execute.ray_data import connect
        from pipeline.execute.ray_errors import root_error

        connect(run.address)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0)) if run.gpus_per_replica else 0
        task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=3)(count)
        stored: Any = ray.put([block.stored(None if block.low is None else block.low.dtype) for block in self.blocks])
        waiting: deque[ray.ObjectRef[Counted]] = deque()
        try:
            for part in parts:
                waiting.append(task.remote(stored, self._column, part, most))
                if len(waiting) >= _PARTS_PER_CPU * max(gpus or int(resources.get("CPU", 1)), 1):
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())
        except ray.exceptions.RayError as error:
            raise root_error(error) from None


def count(pool: Sequence[Block] | Sequence[pa.RecordBatch], column: VectorColumn, part: Part, most: int) -> Counted:
    """Return the counts of one part; see `Pool.counted`. The pool is blocks, or what `Block.stored` made of them."""
    from pipeline.scan.products import Queries  # importing torch takes seconds
    from pipeline.scan.top_k import count_above

    queries = Queries(part.queries)
    rows = np.arange(len(part.numbers))
    scores = queries.exact(_block(part.own, part.keys, column), rows, rows)
    blocks = [block if isinstance(block, Block) else Block.from_stored(block, column, 0) for block in pool]
    counts = count_above(queries, blocks, scores, ignore=[[key] for key in part.keys.to_pylist()], most=most)
    return Counted(part.numbers, scores, counts)


def _block(vectors: Floats, keys: pa.StringArray, column: VectorColumn) -> Block:
    return Block.of(pa.record_batch([keys, dense(vectors)], [HASH, column.name]), column, 0)
