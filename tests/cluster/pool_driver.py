"""A backfill on a cluster whose GPU machines come, go and come back. Run as a script by test_pools.py.

The cards are not there: Ray is told of them, and the encoders run on the CPU. Every encoder writes down where it worked.
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

LABEL = "vectide.test/card"
METRICS_WAIT_S = 60
FREE_UNITS = 4


class NotingStage(EncodeStage):
    """The real stage, which notes its process and node before each unit, and after a few waits for a word to go on."""

    def __call__(self, block: pa.Table) -> pa.Table:
        line = json.dumps({"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()})
        with Path(os.environ["POOL_NOTES"]).open("a") as told:
            told.write(line + "\n")
        while len(notes()) > FREE_UNITS and not Path(os.environ["POOL_NOTES"] + ".go").exists():
            time.sleep(0.05)
        return super().__call__(block)


class FakeCards(Runner):
    """A run that asks Ray for cards and computes on the CPU."""

    def executor(self):
        executor = super().executor()
        executor.pool = dataclasses.replace(executor.pool, device="cpu")
        return executor


def notes() -> list[dict[str, object]]:
    path = Path(os.environ["POOL_NOTES"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def busy_nodes() -> list[object]:
    """The nodes on which two encoders have worked."""
    seen = {(note["node"], note["pid"]) for note in notes()}
    found = [node for node, _ in seen]
    return sorted({node for node in found if found.count(node) == 2}, key=str)


def wait_for(there: Callable[[], object], errors: list[BaseException]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        if errors or time.monotonic() > deadline:
            raise TimeoutError(repr(errors))
        time.sleep(0.05)


def exported(outcome: Outcome) -> str:
    """What the nodes export of ours, once it has all of the run, or after `METRICS_WAIT_S`.

    An export may be made while the run ends: it has the rows of the last unit, and not yet what is counted after them.
    """
    lines: list[str] = []
    for _ in range(METRICS_WAIT_S * 2):
        text = ""
        for node in ray.nodes():
            if node["Alive"]:
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with urllib.request.urlopen(url, timeout=20) as answer:
                    text += answer.read().decode()
        # By the name of the series: Ray's own have paths and names of ours in their labels.
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
    """The sum of a metric's series."""
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
    ended: list[Outcome] = []
    errors: list[BaseException] = []

    def drive() -> None:
        try:
            with reporter() as told:
                job = load_job(sys.argv[1], settings=[f"run.address={cluster.address}"])
                ended.append(FakeCards(resolve_context(job, told), told).run())
        except BaseException as error:
            errors.append(error)
            raise

    setattr(ray_data, "EncodeStage", NotingStage)  # noqa: B010  (a plain assignment is what mypy refuses)
    run = threading.Thread(target=drive, daemon=True)
    run.start()
    table = Path(sys.argv[2])
    # The plan is there before the first unit runs, and no machine of the right kind yet.
    wait_for(lambda: list(table.glob("_vectide/runs/*/plan*")), errors)
    before = len(notes())
    first = cluster.add_node(**worker)
    wait_for(lambda: len(busy_nodes()) == 1 and len(notes()) > FREE_UNITS, errors)
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(**worker)
    wait_for(lambda: len(busy_nodes()) == 2, errors)
    Path(os.environ["POOL_NOTES"] + ".go").touch()
    run.join()
    text = exported(ended[0]) if ended else ""
    told = {"before": before, "notes": notes(), "metrics": text}
    outcome = dataclasses.asdict(ended[0]) if ended else None
    Path(os.environ["POOL_NOTES"] + ".told").write_text(json.dumps({**told, "outcome": outcome, "error": repr(errors)}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
