"""Scans a table on a Ray cluster: each task scans some files, and the driver merges the best rows.

For tables that are larger than one machine's disk or patience. Each machine of the cluster has its own cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.vectors import VectorColumn
from pipeline.execute.ray_data import connect
from pipeline.execute.ray_errors import root_error
from pipeline.scan.table_scan import TableScan
from pipeline.scan.top_k import merge
from pipeline.scan.vector_cache import VectorCache, default_folder
from pipeline.table import delta_table

_PARTS_PER_CPU = 2
_MOST_PARTS = 1000


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """Settings of a scan by a cluster, small enough to be sent with every task.

    Attributes:
        url: URL of the table, which all machines can read.
        version: The version.
        outputs: The columns of vectors.
        k: Rows per query.
        late: Scan the column of many vectors, and not the dense one.
        condition: A condition on the rows, or None.
        columns: Columns to return, `ID` among them; None: all but the vectors.
        cache_bytes: Limit of the cache on each machine; None: no cache.
        cache_folder: Its folder; None: the default one of each machine.
    """

    url: str
    version: int
    outputs: tuple[VectorColumn, ...]
    k: int
    late: bool = False
    condition: pc.Expression | None = None
    columns: tuple[str, ...] | None = None
    cache_bytes: int | None = None
    cache_folder: str | None = None


def nearest_on_ray(settings: ScanSettings, queries: pa.Array, address: str) -> pa.Table:
    """Return the result of `TableScan.nearest` or `nearest_late` over a version of a table, computed by a cluster.

    Args:
        settings: Settings of the scan.
        queries: Query vectors, as an encoder returns them for the scanned column.
        address: Address of the cluster, as in `run.address`.

    Raises:
        ConfigError: there is no cluster at the address.
        StorageError: a store refused or failed.
    """
    connect(address)
    files = len(delta_table.file_sizes(delta_table.need_table(settings.url, settings.version)))
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    parts = max(1, min(files, int(resources.get("CPU", 1)) * _PARTS_PER_CPU, _MOST_PARTS))
    shared = ray.put(queries)
    try:
        results = ray.get([_nearest_of_part.remote(settings, (part, parts), shared) for part in range(parts)])
    except ray.exceptions.RayError as error:
        raise root_error(error) from None
    return merge(results, settings.k)


@ray.remote(num_cpus=1, max_retries=3)
def _nearest_of_part(settings: ScanSettings, part: tuple[int, int], queries: pa.Array) -> pa.Table:
    table = delta_table.need_table(settings.url, settings.version)
    folder = default_folder() if settings.cache_folder is None else Path(settings.cache_folder)
    cache = None if settings.cache_bytes is None else VectorCache(folder, settings.cache_bytes)
    scan = TableScan(table, settings.outputs, cache, part)
    if settings.late:
        return scan.nearest_late(queries, settings.k, condition=settings.condition)
    return scan.nearest(queries, settings.k, condition=settings.condition, columns=settings.columns, device="cpu")
