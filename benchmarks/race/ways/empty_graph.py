"""A Ray Data graph shaped like a backfill's that does no work: the time of Ray and Ray Data until the first row."""

from __future__ import annotations

import sys

import pyarrow as pa
import ray.data

from benchmarks.race.ways.results import print_result, since_start
from pipeline.execute.ray_data import connect, machines
from pipeline.job.config import parse_job
from pipeline.plan.resources import size_pool

UNITS = 10


def _on(block: pa.Table) -> pa.Table:
    return block


class On:
    """An actor that returns its input."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def main(corpus: str, out: str, model: str, *rest: str) -> None:
    del rest
    job = parse_job(
        {"source": {"uri": corpus}, "table": {"uri": out}, "encoder": {"model": model}, "run": {"address": "local"}}
    )
    connect(job.run.address)
    started = since_start()
    pool = size_pool(job.run, machines())
    dataset = (
        ray.data.from_blocks([pa.table({"unit": [unit]}) for unit in range(UNITS)])
        .map_batches(_on, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus)
        .map_batches(
            On,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.replicas, max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
        )
        .map_batches(_on, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus)
    )
    came = [(since_start(), bundle.num_rows() or 0) for bundle in dataset.iter_internal_ref_bundles()]
    print_result(rows=sum(rows for _, rows in came), out=came, parts={"imports, Ray's start": started})


if __name__ == "__main__":
    main(*sys.argv[1:])
