"""The Ray Data graph: units -> read and tokenize -> encode -> write -> receipts.

Called by `run`. One unit is one block of one row through all three stages (see actors/unit/unit_batch.py), so every stage takes
`batch_size=1` and Ray never splits, merges or drops a unit. Units go in by waves: the driver holds the blocks of one
wave, not of a plan of a million. The trade-off: encoders are started anew for each wave, so a wave is hours of work.
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
from actors.schema import Unit
from actors.unit.writer import WriterSpec
from pipeline.execute.attempts import AttemptLog, RayAttemptLog
from pipeline.execute.metrics import EncoderMeter, Meter, RunMeter
from pipeline.execute.outcome import UnitOutcome, decode_outcome
from pipeline.execute.ray_errors import root
from pipeline.execute.stages.encode import EncodeStage
from pipeline.execute.stages.read import read_and_tokenize
from pipeline.execute.stages.spec import StageSpec, to_block
from pipeline.execute.stages.write import rewrite, write
from pipeline.job.config import Run
from pipeline.plan.resources import Machine, Pool, size_pool

WAVE_UNITS = 20_000

# How long nothing may move before the run gives up: where a pool grows, for machines to come; where it is of a fixed size,
# whose machines were there when it began, for them to come back.
_PATIENCE_S = {True: 12 * 3600.0, False: 1800.0}
# A unit that hangs ends its process a few times before it moves, and each time takes as long as `run.row_timeout_s`.
_HANGS = 10
_RAYS_OWN = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"

# Ray ends an idle worker after a second where there are more than the machine has CPUs, which encoders and Ray's own actors
# are already: each unit's write then began with a new process and two seconds of imports, on all cores.
_KEEP_IDLE_MS = 600_000
# How often the book is asked how many encoders are at work: at a hundred units a second, not at each.
_PULSE_S = 1.0
_KNOCK_S = 10.0


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
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised to us, without a traceback first


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own chatter; what fails is raised to us
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    target = os.environ.get("RAY_ADDRESS") or "local" if address == "auto" else address
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
    """Raise ConfigError where nothing listens at `host:port`: Ray itself would wait there for minutes, deaf to Ctrl-C."""
    host, _, port = target.rpartition(":")
    if "/" in target or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"run.address {address!r}: nothing answers at {target} ({error}); start a Ray cluster there, or use "
            f"run.address=local"
        ) from None


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


def machines() -> list[Machine]:
    """The nodes of the cluster that this process is connected to."""
    return [
        Machine(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node["Labels"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def run_units(units: Iterable[Unit], spec: StageSpec, pool: Pool, attempt_log: AttemptLog) -> Iterator[UnitOutcome]:
    """Run units through the graph and yield how each ended, as they end.

    Raises:
        VectideError: what a worker raised outside of any unit, such as a model that does not load.
    """
    rest = iter(units)
    meter = RunMeter(Meter(spec.writer.table, spec.writer.run))
    busy, asked_s = None, float("-inf")
    while wave := list(itertools.islice(rest, WAVE_UNITS)):
        for outcome in _run_wave(wave, spec, pool, attempt_log):
            if outcome.receipt is not None:
                meter.finished(outcome.receipt, outcome.reasons)
            else:
                meter.failed()
            if time.monotonic() - asked_s >= _PULSE_S:
                deaths, busy = attempt_log.stats()
                meter.deaths(deaths)
                asked_s = time.monotonic()
            yield replace(outcome, busy=busy)
    meter.deaths(attempt_log.stats()[0])


def _run_wave(wave: list[Unit], spec: StageSpec, pool: Pool, attempt_log: AttemptLog) -> Iterator[UnitOutcome]:
    shared = {"spec": spec, "attempt_log": attempt_log}
    least, most = pool.sizes(len(wave))
    _set_stall_timeout(_PATIENCE_S[pool.grows], spec.row_timeout_s)
    dataset = (
        ray.data.from_blocks([to_block(unit) for unit in wave])
        .map_batches(read_and_tokenize, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus, fn_kwargs=shared)
        .map_batches(
            EncodeStage,
            batch_size=1,
            batch_format="pyarrow",
            # With fewer in flight than Ray's threshold of 1.75 a pool never grows.
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            label_selector=dict(pool.labels) if pool.labels else None,
            fn_constructor_kwargs={
                **shared,
                "threads": pool.threads,
                "device": pool.device,
                "load_now": True,
                "meter": EncoderMeter(Meter(spec.writer.table, spec.writer.run)),
            },
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=pool.io_cpus, fn_kwargs=shared)
    )
    yield from _outcomes(dataset, pool.describe())


def rewrite_units(
    units: Iterable[Unit], spec: WriterSpec, attempt_log: AttemptLog, limit_s: float | None
) -> Iterator[UnitOutcome]:
    """As `run_units`, for units that only carry rows: one task each, as many at once as there are CPUs."""
    shared = {"spec": spec, "attempt_log": attempt_log, "limit_s": limit_s}
    _set_stall_timeout(_PATIENCE_S[False], limit_s)
    rest = iter(units)
    while wave := list(itertools.islice(rest, WAVE_UNITS)):
        blocks = ray.data.from_blocks([to_block(unit) for unit in wave])
        yield from _outcomes(
            blocks.map_batches(rewrite, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs=shared),
            "a CPU for each file that is written",
        )


def _outcomes(dataset: ray.data.Dataset, wanted: str) -> Iterator[UnitOutcome]:
    """How each unit ends, as they end. `wanted` says what resources the graph asks for."""
    try:
        # Not `iter_batches`: every five seconds it sends its statistics away, which hold the metadata of the whole wave.
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                block = ray.get(entry.ref)
                for row in range(block.num_rows):
                    yield decode_outcome(block.slice(row, 1))
    except ray.exceptions.RayError as error:
        raise root(error) from error
    except ExecutionTimeoutError as error:
        raise ClusterStalled(
            f"nothing moved for {_time(_stall_timeout_s())}: {wanted}, and the cluster did not have them, or something in them "
            f"hangs. Look at its workers (`ray status`), then run the same command again: it goes on from here"
        ) from error


def _set_stall_timeout(wait_s: float, row_timeout_s: float | None = None) -> None:
    """Say how long Ray Data waits for anything to move, unless its own variable says so."""
    if _RAYS_OWN not in os.environ:
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = max(
            wait_s, _HANGS * (row_timeout_s or 0.0)
        )


def _time(seconds: float) -> str:
    """A time, for a person."""
    for name, unit_s in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.3g} {name}"
    return f"{seconds:g} seconds"


def _stall_timeout_s() -> float:
    """How long Ray Data waits for anything to move."""
    return float(ray.data.DataContext.get_current().execution_no_progress_timeout_s)


class RayExecutor:
    """Units on the Ray cluster that a job names."""

    def __init__(self, run: Run) -> None:
        connect(run.address)
        self.pool = size_pool(run, machines())
        self.attempt_log: AttemptLog = RayAttemptLog()

    def run(self, units: Iterable[Unit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """See `run_units`."""
        return run_units(units, spec, self.pool, self.attempt_log)

    def rewrite(self, units: Iterable[Unit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """See `rewrite_units`."""
        return rewrite_units(units, spec, self.attempt_log, limit_s)
