"""Executor on Ray Data: units -> read and tokenize -> encode -> write -> receipts.

A unit is a block of one row in all three stages (see actors/unit/unit_batch.py), so every stage has `batch_size=1`, and
Ray never splits, merges or drops a unit. Units run in waves, so that the driver has the blocks of one wave in memory and
not of a plan of a million units. The trade-off: each wave starts its encoders again, so a wave has hours of work.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from actors.encoders.compute.environment import ENCODER_ENV
from actors.errors import ClusterStalled, ConfigError
from actors.schema import RewriteUnit, Unit
from actors.unit.writer import WriterSpec
from pipeline.execute.attempts import AttemptLog, RayAttemptLog
from pipeline.execute.metrics import EncoderMeter, Meter, RunMeter
from pipeline.execute.outcome import UnitOutcome, decode_outcome
from pipeline.execute.ray_errors import root_error
from pipeline.execute.stages.encode import EncodeStage
from pipeline.execute.stages.read import read_and_tokenize
from pipeline.execute.stages.spec import StageSpec, to_block
from pipeline.execute.stages.write import rewrite, write
from pipeline.job.config import Run
from pipeline.job.values import cluster_at
from pipeline.plan.resources import Machine, Pool, size_pool

WAVE_UNITS = 20_000

# Longest time without progress before the run fails, by `Pool.grows`: a growing pool waits for new machines, a pool of
# fixed size waits for lost machines to return.
_STALL_TIMEOUT_S = {True: 12 * 3600.0, False: 1800.0}
# A unit that hangs may end several processes before there is progress, each after `run.row_timeout_s`.
_MAX_HANGS = 10
_RAY_STALL_VARIABLE = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"

# By default Ray ends a worker after one idle second if there are more workers than CPUs. Encoders and Ray's own actors
# already exceed that number, so each write of a unit would start a new process and import for two seconds on all cores.
_KEEP_IDLE_MS = 600_000
# Interval of queries to the attempt log: a query per unit would be too many at a hundred units per second.
_STATS_INTERVAL_S = 1.0
_CONNECT_TIMEOUT_S = 10.0
_GPU_ACTOR_THREADS = 3


def connect(address: str) -> None:
    """Join the cluster at `address`, or start Ray on this machine.

    Args:
        address: "auto" (the cluster in RAY_ADDRESS, else this machine), "local", or the address of a cluster.

    Raises:
        ConfigError: there is no cluster at that address.
    """
    if not ray.is_initialized():
        _init(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(
        logging.CRITICAL
    )  # errors are raised; without this Ray logs a traceback first


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors are raised and need no log
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    target = cluster_at(address)
    _check_reachable(target, address)
    if target == "local":
        os.environ.update({name: os.environ.get(name, value) for name, value in ENCODER_ENV.items()})
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_KEEP_IDLE_MS))
    try:
        with _native_stderr_silenced():
            ray.init(
                address=target,
                include_dashboard=False if target == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=None if target == "local" else {"env_vars": ENCODER_ENV},
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"run.address {address!r}: no Ray cluster answers there ({error}); start one, or use run.address=local"
        ) from error


def _check_reachable(target: str, address: str) -> None:
    """Raise ConfigError if nothing listens at `host:port`: Ray would wait for minutes and ignore Ctrl-C."""
    host, _, port = target.rpartition(":")
    if "/" in target or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"run.address {address!r}: nothing answers at {target} ({error}); start a Ray cluster there, or use "
            f"run.address=local"
        ) from None


@contextlib.contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Redirect file descriptor 2 to /dev/null: Ray's native code prints about its log level. Errors are raised."""
    sys.stderr.flush()
    saved = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def machines() -> list[Machine]:
    """Return the living nodes of the connected cluster."""
    return [
        Machine(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node["Labels"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def run_units(
    units: Iterable[Unit | RewriteUnit], spec: StageSpec, pool: Pool, attempt_log: AttemptLog
) -> Iterator[UnitOutcome]:
    """Run units through the graph and yield the outcome of each when it ends.

    Raises:
        VectideError: a worker failed outside a unit, for example because a model does not load.
    """
    remaining = iter(units)
    meter = RunMeter(Meter(spec.writer.table, spec.writer.run))
    busy, last_query_s = None, float("-inf")
    while wave := list(itertools.islice(remaining, WAVE_UNITS)):
        for outcome in _run_wave(wave, spec, pool, attempt_log):
            if outcome.receipt is not None:
                meter.finished(outcome.receipt, outcome.reasons)
            else:
                meter.failed()
            if time.monotonic() - last_query_s >= _STATS_INTERVAL_S:
                deaths, busy = attempt_log.stats()
                meter.deaths(deaths)
                last_query_s = time.monotonic()
            yield replace(outcome, busy=busy)
    meter.deaths(attempt_log.stats()[0])


def _run_wave(
    wave: list[Unit | RewriteUnit], spec: StageSpec, pool: Pool, attempt_log: AttemptLog
) -> Iterator[UnitOutcome]:
    shared = {"spec": spec, "attempt_log": attempt_log}
    _set_stall_timeout(_STALL_TIMEOUT_S[pool.grows], spec.row_timeout_s)
    dataset = (
        ray.data.from_blocks([to_block(unit) for unit in wave])
        .map_batches(
            read_and_tokenize,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.io_cpus,
            fn_kwargs={**shared, "beside_gpus": pool.device != "cpu", "decoders": max(1, int(pool.io_cpus))},
        )
        .map_batches(
            EncodeStage,
            batch_size=1,
            batch_format="pyarrow",
            compute=_actors(pool, len(wave)),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            label_selector=dict(pool.labels) if pool.labels else None,
            fn_constructor_kwargs={
                **shared,
                "threads": pool.threads,
                "device": pool.device,
                "gpus": pool.gpus,
                "load_now": True,
                "meter": EncoderMeter(Meter(spec.writer.table, spec.writer.run)),
            },
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus, fn_kwargs=shared)
    )
    yield from _outcomes(dataset, pool.describe())


def _actors(pool: Pool, units: int) -> ray.data.ActorPoolStrategy:
    """Return the actors of the encode stage for so many units."""
    least, most = pool.sizes(units)
    if pool.device == "cpu":
        # A pool grows only if more tasks per actor are in flight than Ray's threshold of 1.75.
        return ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2)
    # On a GPU a unit is unpacked and another one packed while a third is computed: the stage sees to the turns.
    return ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_tasks_in_flight_per_actor=_GPU_ACTOR_THREADS + 1,
        max_concurrent_calls_per_actor=_GPU_ACTOR_THREADS,
        enable_true_multi_threading=True,
    )


def rewrite_units(
    units: Iterable[RewriteUnit], spec: WriterSpec, attempt_log: AttemptLog, limit_s: float | None
) -> Iterator[UnitOutcome]:
    """Run units that rewrite table files, one task each on one CPU, and yield the outcome of each when it ends."""
    shared = {"spec": spec, "attempt_log": attempt_log, "limit_s": limit_s}
    _set_stall_timeout(_STALL_TIMEOUT_S[False], limit_s)
    remaining = iter(units)
    while wave := list(itertools.islice(remaining, WAVE_UNITS)):
        blocks = ray.data.from_blocks([to_block(unit) for unit in wave])
        yield from _outcomes(
            blocks.map_batches(rewrite, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs=shared),
            "each file needs a CPU",
        )


def _outcomes(dataset: ray.data.Dataset, needs: str) -> Iterator[UnitOutcome]:
    """Yield the outcome of each unit when it ends. `needs` describes the resources of the graph, for messages."""
    try:
        # Not `iter_batches`: every five seconds it sends statistics that contain the metadata of the whole wave.
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                block = ray.get(entry.ref)
                for row in range(block.num_rows):
                    yield decode_outcome(block.slice(row, 1))
    except ray.exceptions.RayError as error:
        raise root_error(error) from error
    except ExecutionTimeoutError as error:
        raise ClusterStalled(
            f"no progress for {_duration(_stall_timeout_s())}: {needs}, and the cluster did not have them, or a worker "
            f"hangs. Check the workers (`ray status`), then run the same command again: it resumes the run"
        ) from error


def _set_stall_timeout(wait_s: float, row_timeout_s: float | None = None) -> None:
    """Set how long Ray Data waits for progress, unless Ray's environment variable sets it."""
    if _RAY_STALL_VARIABLE not in os.environ:
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = max(
            wait_s, _MAX_HANGS * (row_timeout_s or 0.0)
        )


def _duration(seconds: float) -> str:
    """Return a duration in the unit that fits it."""
    for name, unit_s in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.3g} {name}"
    return f"{seconds:g} seconds"


def _stall_timeout_s() -> float:
    """Return how long Ray Data waits for progress."""
    return float(ray.data.DataContext.get_current().execution_no_progress_timeout_s)


class RayExecutor:
    """Runs units on the Ray cluster of a job."""

    def __init__(self, run: Run) -> None:
        connect(run.address)
        self.pool = size_pool(run, machines())
        self.attempt_log: AttemptLog = RayAttemptLog()

    def run(self, units: Iterable[Unit | RewriteUnit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """See `run_units`."""
        return run_units(units, spec, self.pool, self.attempt_log)

    def rewrite(self, units: Iterable[RewriteUnit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """See `rewrite_units`."""
        return rewrite_units(units, spec, self.attempt_log, limit_s)
