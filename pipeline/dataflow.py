"""The Ray Data graph: units -> read and tokenize -> encode -> write -> receipts.

Called by `run`. One unit is one block of one row through all three stages (see actors/parcel.py), so every stage takes
`batch_size=1` and Ray never splits, merges or drops a unit. Units go in by waves: the driver holds the blocks of one
wave, not of a plan of a million. The trade-off: encoders are started anew for each wave, so a wave is hours of work.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator

import ray
import ray.data

from actors.errors import ConfigError, VectideError
from actors.schema import Unit
from actors.writer import WriterSpec
from pipeline.attempts import AttemptBook, Book
from pipeline.config import Run
from pipeline.executor import Pool, UnitOutcome, opened
from pipeline.stages import EncodeStage, StageSpec, read_and_tokenize, rewrite, to_block, write

WAVE_UNITS = 20_000

# Every micro-batch has a length of its own, and for each oneDNN keeps a compiled kernel and malloc a hole: without these
# an encoder on a CPU grew from 0.5 to 1.5 GiB in minutes; with them it stays at 0.5, as fast as before.
_LEAN = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}


def connect(address: str) -> None:
    """Join the cluster at `address`, or start Ray on this machine.

    Args:
        address: "auto" (the cluster that RAY_ADDRESS names, else this machine), "local", or a cluster's address.

    Raises:
        ConfigError: there is no cluster at that address.
    """
    if not ray.is_initialized():
        _init(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own chatter; what fails is raised to us
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    target = os.environ.get("RAY_ADDRESS") or "local" if address == "auto" else address
    if target == "local":
        os.environ.update({name: os.environ.get(name, value) for name, value in _LEAN.items()})
    try:
        with _native_stderr_silenced():
            ray.init(
                address=target,
                include_dashboard=False if target == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=None if target == "local" else {"env_vars": _LEAN},
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"run.address {address!r}: no Ray cluster answers there ({error}); start one, or use run.address=local"
        ) from error


@contextlib.contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Keep what Ray's native code says of its own log level off the terminal; what fails is raised, not printed."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def cluster_resources() -> dict[str, float]:
    """Totals of the cluster that this process is connected to."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def count_nodes() -> int:
    """How many nodes of it are alive."""
    return len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]


def size_pool(run: Run, resources: dict[str, float] | None = None) -> Pool:
    """How many encoders, with what, on the cluster that this process is connected to.

    Args:
        run: The job's wishes.
        resources: Totals of the cluster; asked from Ray when None.

    Raises:
        ConfigError: the wishes cannot be met by the cluster's total.
    """
    total = cluster_resources() if resources is None else resources
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if cpus < 1:
        raise ConfigError("the Ray cluster has no CPU to read and write with; add a worker")
    per_replica = run.gpus_per_replica if run.gpus_per_replica != "auto" else (1.0 if gpus >= 1 else 0.0)
    if per_replica > 0:
        fit = math.floor(gpus / per_replica) if per_replica >= 1 else math.floor(1 / per_replica) * math.floor(gpus)
        replicas = fit if run.replicas == "auto" else run.replicas
        if replicas < 1 or replicas > fit:
            raise ConfigError(
                f"{max(replicas, 1)} replicas of {per_replica:g} GPUs do not fit: the cluster has {gpus:g} GPUs. Lower "
                f"run.replicas or run.gpus_per_replica (0 runs on CPUs)"
            )
        return Pool(replicas, per_replica, cpus=0.0, threads=None, io_cpus=0.5)
    replicas = max(1, math.floor(cpus)) if run.replicas == "auto" else run.replicas
    # Some of each core is left to reading and writing, or encoders that take all of it would wait for themselves.
    share = min(0.75, 0.75 * cpus / replicas)
    threads = max(1, math.floor(cpus / replicas))
    return Pool(replicas, 0.0, cpus=round(share, 4), threads=threads, io_cpus=round(min(0.25, cpus / 8), 4))


def run_units(units: Iterable[Unit], spec: StageSpec, pool: Pool, book: Book) -> Iterator[UnitOutcome]:
    """Run units through the graph and yield how each ended, as they end.

    Raises:
        VectideError: what a worker raised outside of any unit, such as a model that does not load.
    """
    rest = iter(units)
    while wave := list(itertools.islice(rest, WAVE_UNITS)):
        yield from _run_wave(wave, spec, pool, book)


def _run_wave(wave: list[Unit], spec: StageSpec, pool: Pool, book: Book) -> Iterator[UnitOutcome]:
    shared = {"spec": spec, "book": book}
    dataset = (
        ray.data.from_blocks([to_block(unit) for unit in wave])
        .map_batches(read_and_tokenize, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus, fn_kwargs=shared)
        .map_batches(
            EncodeStage,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(pool.replicas, len(wave)), max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            fn_constructor_kwargs={**shared, "threads": pool.threads, "device": pool.device, "load_now": True},
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus, fn_kwargs=shared)
    )
    yield from _outcomes(dataset)


def rewrite_units(units: Iterable[Unit], spec: WriterSpec, book: Book) -> Iterator[UnitOutcome]:
    """As `run_units`, for units that only carry rows: one task each, as many at once as there are CPUs."""
    shared = {"spec": spec, "book": book}
    rest = iter(units)
    while wave := list(itertools.islice(rest, WAVE_UNITS)):
        blocks = ray.data.from_blocks([to_block(unit) for unit in wave])
        yield from _outcomes(
            blocks.map_batches(rewrite, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs=shared)
        )


def _outcomes(dataset: ray.data.Dataset) -> Iterator[UnitOutcome]:
    try:
        for block in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            yield opened(block)
    except ray.exceptions.RayError as error:
        raise _root(error) from error


def _root(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrapping, where there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, VectideError):
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) and cause is not seen else seen.__cause__
    return error


class RayExecutor:
    """Units on the Ray cluster that a job names."""

    def __init__(self, run: Run) -> None:
        connect(run.address)
        self.pool = size_pool(run)
        self.book: Book = AttemptBook()

    def run(self, units: Iterable[Unit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """See `run_units`."""
        return run_units(units, spec, self.pool, self.book)

    def rewrite(self, units: Iterable[Unit], spec: WriterSpec) -> Iterator[UnitOutcome]:
        """See `rewrite_units`."""
        return rewrite_units(units, spec, self.book)
