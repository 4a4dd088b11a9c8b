"""A backfill on a cluster whose GPU nodes join, fail and are replaced. Run as a script by test_pools.py.

The GPUs are only declared to Ray, and the encoders run on the CPU. Each encoder notes its process and node.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from jobs.progress import reporter
from pipeline.execute import ray_data
from pipeline.execute.progress import Outcome
from pipeline.execute.stages.encode import EncodeStage
from pipeline.job.load import load_job
from pipeline.run.backfill import Runner
from pipeline.run.context import resolve_context

LABEL = "vectide.test/gpu"
METRICS_WAIT_S = 60
FREE_UNITS = 4


class NotingStage(EncodeStage):
    """The real stage; it notes process and node before each unit, and after a few units waits for a file."""

    def __call__(self, block: pa.Table) -> pa.Table:
        line = json.dumps({"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()})
        with Path(os.environ["POOL_NOTES"]).open("a") as notes_file:
            notes_file.write(line + "\n")
        while len(notes()) > FREE_UNITS and not Path(os.environ["POOL_NOTES"] + ".go").exists():
            time.sleep(0.05)
        return super().__call__(block)


class FakeGpus(Runner):
    """A run that requests GPUs from Ray and computes on the CPU."""

    def executor(self):
        executor = super().executor()
        executor.pool = dataclasses.replace(executor.pool, device="cpu")
        return executor


def notes() -> list[dict[str, object]]:
    path = Path(os.environ["POOL_NOTES"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def busy_nodes() -> list[object]:
    """Return the nodes on which two encoders have worked."""
    encoders = {(note["node"], note["pid"]) for note in notes()}
    nodes = [node for node, _ in encoders]
    return sorted({node for node in nodes if nodes.count(node) == 2}, key=str)


def wait_for(condition: Callable[[], object], errors: list[BaseException]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if errors or time.monotonic() > deadline:
            raise TimeoutError(repr(errors))
        time.sleep(0.05)


def exported(outcome: Outcome) -> str:
    """Return this package's metrics of all nodes once they are complete, or after `METRICS_WAIT_S`.

    An export during the end of the run may have the rows of the last unit and not yet the later counts.
    """
    lines: list[str] = []
    for _ in range(METRICS_WAIT_S * 2):
        text = ""
        for node in ray.nodes():
            if node["Alive"]:
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with urllib.request.urlopen(url, timeout=20) as answer:
                    text += answer.read().decode()
        # Select by the name of the series: labels of Ray's own series also contain names of this package.
        lines = [line for line in text.splitlines() if line.startswith("ray_vectide_")]
        if (
            total(lines, "rows_read_total") == outcome.rows_read
            and total(lines, "units_total") == outcome.units
            and total(lines, "process_deaths_total") == outcome.deaths
            and total(lines, "micro_batches_total") > 0
        ):
            break
        time.sleep(0.5)
    return "\n".join(lines)


def total(lines: list[str], name: str) -> float:
    """Return the sum of a metric's series."""
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"ray_vectide_{name}{{"))


def main() -> None:
    head: dict[str, Any] = {"num_cpus": 2, "num_gpus": 1, "labels": {LABEL: "T4"}, "object_store_memory": 200_000_000}
    worker: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": 1,
        "labels": {LABEL: "H100"},
        "object_store_memory": 100_000_000,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []

    def drive() -> None:
        try:
            with reporter() as report:
                job = load_job(sys.argv[1], settings=[f"run.address={cluster.address}"])
                outcomes.append(FakeGpus(resolve_context(job, report), report).run())
        except BaseException as error:
            errors.append(error)
            raise

    setattr(ray_data, "EncodeStage", NotingStage)  # noqa: B010  (mypy refuses an assignment)
    run = threading.Thread(target=drive, daemon=True)
    run.start()
    table = Path(sys.argv[2])
    # The plan exists before the first unit runs, and there is no node with the right label yet.
    wait_for(lambda: list(table.glob("_vectide/runs/*/plan*")), errors)
    before = len(notes())
    first = cluster.add_node(**worker)
    wait_for(lambda: len(busy_nodes()) == 1 and len(notes()) > FREE_UNITS, errors)
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(**worker)
    wait_for(lambda: len(busy_nodes()) == 2, errors)
    Path(os.environ["POOL_NOTES"] + ".go").touch()
    run.join()
    text = exported(outcomes[0]) if outcomes else ""
    result = {"before": before, "notes": notes(), "metrics": text}
    outcome = dataclasses.asdict(outcomes[0]) if outcomes else None
    Path(os.environ["POOL_NOTES"] + ".result").write_text(
        json.dumps({**result, "outcome": outcome, "error": repr(errors)})
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
