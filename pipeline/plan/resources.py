"""Number of encoders of a run, and the CPUs and GPUs of each. Arithmetic without Ray.

Called by `dataflow` with the machines of the cluster, by `doctor`, and by the inline executor. A pool has a fixed size, or
it grows with the cluster from `least` to `replicas`. The trade-off: a fixed size is checked against the machines that
are there, so a wish that cannot be met ends at once; a growing one trusts that more of them will come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors.errors import ConfigError
from pipeline.job.config import Replicas, Run

# Most threads of one encoder on CPUs, unless the job asks for few encoders.
_THREADS = 4
# CPUs that Ray reserves for each computing core, and for a task that reads or writes. Ray Data keeps a sixth of all CPUs
# for each of three stages, in their order: if encoders take more than the rest, nothing remains for the last one,
# and no unit is written until every unit is read.
_SHARE, _IO_CPUS = 0.66, 0.2
# Where encoders can come to a machine beyond those that it began with, because the pool grows or another machine is lost, their
# share is one of these: the first of which as many as fit leave room for a task beside them, or the run would stand still.
_CROWDED, _CROWDED_IO_CPUS = (0.75, 0.77, 0.79, 0.81, 0.83), 0.25


# CPUs that Ray reserves for an encoder on a GPU, whose thread launches the kernels, and for a task beside such encoders.
# Of few CPUs, encoders take this part at most, and a task the part that Ray Data keeps for its stage.
_BESIDE_GPU, _ENCODERS_PART, _STAGE_PART = 1.0, 2 / 3, 1 / 6


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoder processes and their resources.

    Attributes:
        replicas: Encoder processes, at most.
        gpus: GPUs for each; 0 runs them on CPUs.
        cpus: CPUs that Ray reserves for each.
        threads: CPU threads of each.
        io_cpus: CPUs that Ray reserves for a task that reads or writes.
        device: "cuda" or "cpu": where the encoders run. An encoder that was given a GPU and finds none raises.
        least: Encoder processes to begin with; the pool grows from there to `replicas`. 0 means `replicas`.
        labels: Labels that a machine must have to get an encoder.
    """

    replicas: int
    gpus: float
    cpus: float
    threads: int | None
    io_cpus: float
    device: str
    least: int = 0
    labels: Mapping[str, str] | None = None

    def sizes(self, units: int) -> tuple[int, int]:
        """The least and the most encoders for so many units: one without a unit would be started for nothing.

        Encoders on GPUs are all asked for at once, and wait for their machines: that is what tells the cluster's
        autoscaler which kind to bring. What Ray Data asks for when a pool grows has no labels, and it adds an encoder
        only when readers are far ahead. On CPUs waiting encoders would take the readers' share, so there it grows.
        """
        most = max(1, min(self.replicas, units))
        return most if self.gpus else min(self.least or most, most), most

    def count(self) -> str:
        """Return the number of encoders as text."""
        return f"{self.least} to {self.replicas}" if self.grows else str(self.replicas)

    def describe(self) -> str:
        """Return the resources of an encoder as text."""
        labels = f" on machines with {_listed(self.labels)}" if self.labels else ""
        what = f"{self.gpus:g} GPUs" if self.gpus else f"{self.cpus:g} CPUs"
        return f"encoders need {what} each{labels}"

    @property
    def cores(self) -> int | None:
        """CPU cores that one encoder computes on; None if it computes on a GPU."""
        return None if self.gpus else self.threads or 1

    @property
    def grows(self) -> bool:
        """True if the pool starts with fewer encoders than `replicas`, and adds more when the cluster has room."""
        return 0 < self.least < self.replicas


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of a cluster."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


def size_pool(run: Run, machines: Sequence[Machine]) -> Pool:
    """Return the encoders that these machines can run, with their resources.

    Args:
        run: Section `run` of the job.
        machines: Current nodes of the cluster.

    Raises:
        ConfigError: the wishes cannot be met.
    """
    labels = dict(run.labels or {})
    cpus = sum(machine.cpus for machine in machines)
    if cpus < 1:
        raise ConfigError("the Ray cluster has no CPU to read and write with; add a worker")
    for_encoders = [machine for machine in machines if labelled(machine.labels, labels)]
    waits = isinstance(run.replicas, Replicas) and run.replicas.min == 0
    if not for_encoders and not waits:
        raise ConfigError(
            f"no machine of the Ray cluster has the labels of run.labels ({_listed(labels)}); there are "
            f"{_labels_of(machines)}. Correct run.labels, or wait for such machines with run.replicas: "
            f"{{min: 0, max: N}}"
        )
    gpus = sum(machine.gpus for machine in for_encoders)
    per_replica = run.gpus_per_replica if run.gpus_per_replica != "auto" else (1.0 if gpus >= 1 else 0.0)
    if per_replica > 0:
        return _on_gpus(run, per_replica, cpus, for_encoders, labels)
    return _on_cpus(run, cpus, for_encoders, labels)


def _fit(gpus: float, per_replica: float) -> int:
    """Return the replicas that a machine can run: the GPUs of a replica, or its share of one, are never divided."""
    if per_replica >= 1:
        return math.floor(gpus / per_replica)
    return math.floor(1 / per_replica) * math.floor(gpus)


def _on_gpus(run: Run, per_replica: float, cpus: float, machines: Sequence[Machine], labels: Mapping[str, str]) -> Pool:
    wanted = run.replicas
    gpus, room = sum(machine.gpus for machine in machines), [_fit(machine.gpus, per_replica) for machine in machines]
    fit = sum(room)
    if isinstance(wanted, Replicas):
        now, most = wanted.min, wanted.max
    else:
        most = max(fit, 1) if wanted == "auto" else wanted
        now = most
    if now > fit:
        where = f" with {_listed(labels)}" if labels else ""
        raise ConfigError(
            f"{now} replicas of {per_replica:g} GPUs do not fit: the cluster has {gpus:g} GPUs{where}, room for {fit}. "
            f"Lower run.replicas or run.gpus_per_replica (0 runs on CPUs), or let the pool grow with the cluster: "
            f"run.replicas: {{min: {min(fit, 1)}, max: {most}}}"
        )
    # Of machines to come nothing is known: an encoder that asks for a CPU would not fit one that has none to give.
    parts = [machine.cpus * _ENCODERS_PART / n for machine, n in zip(machines, room, strict=True) if n] or [0.0]
    # Encoders that wait for a machine count too: Ray Data takes their CPUs from the readers.
    parts.append(cpus * _ENCODERS_PART / most)
    return Pool(
        most,
        per_replica,
        cpus=_at_most_one(*parts),
        threads=None,
        io_cpus=_at_most_one(cpus * _STAGE_PART),
        device="cuda",
        least=max(now, 1),
        labels=labels or None,
    )


def _at_most_one(*cpus: float) -> float:
    """Return the least of some numbers of CPUs, or a whole one, rounded down to what Ray can reserve."""
    return math.floor(min([_BESIDE_GPU, *cpus]) * 10_000) / 10_000


def _on_cpus(run: Run, cpus: float, machines: Sequence[Machine], labels: Mapping[str, str]) -> Pool:
    wanted = run.replicas
    cores = [math.floor(machine.cpus) for machine in machines]
    encoder_cpus = sum(machine.cpus for machine in machines)
    if isinstance(wanted, Replicas) and wanted.min > encoder_cpus:
        raise ConfigError(
            f"run.replicas.min is {wanted.min}, but there are {encoder_cpus:g} CPUs for encoders; lower it, or add workers"
        )
    most, threads = on_cores(cores, at_most(wanted))
    now = wanted.min if isinstance(wanted, Replicas) else most
    # Some of each core is left to reading and writing, or encoders that take all of it would wait for themselves. A
    # pool that grows gets more cores with each encoder, so there the share is not cut.
    fixed = now == most and len(machines) == 1
    io_cpus = min(_IO_CPUS, _IO_CPUS * cpus / 2) if fixed else min(_CROWDED_IO_CPUS, cpus / 8)
    share = _SHARE if fixed else next((s for s in _CROWDED if _leaves(cores, s * threads, io_cpus)), _CROWDED[0])
    share *= threads if now < most else min(threads, encoder_cpus / most)
    return Pool(
        most,
        0.0,
        cpus=round(share, 4),
        threads=threads,
        io_cpus=round(io_cpus, 4),
        device="cpu",
        least=now,
        labels=labels or None,
    )


def at_most(wanted: int | Replicas | Literal["auto"]) -> int | None:
    """Return the most encoders that a job may have; None if it does not say."""
    if isinstance(wanted, Replicas):
        return wanted.max
    return None if wanted == "auto" else wanted


def on_cores(cores: Sequence[int], asked: int | None) -> tuple[int, int]:
    """Return the number of encoders and the threads of each; `cores` has the cores of each machine.

    If a number is asked for, each encoder gets the most threads with which so many fit. Otherwise every core is used, by
    few processes with up to `_THREADS` threads each: they are as fast as one process a core, with less memory and fewer
    imports. More threads would wait for the lock of the interpreter.
    """
    if asked is not None:
        return asked, next((n for n in range(max(cores, default=0), 1, -1) if _room(cores, n) >= asked), 1)
    threads = max(range(1, _THREADS + 1), key=lambda n: (n * _room(cores, n), n))
    return max(1, _room(cores, threads)), threads if _room(cores, threads) else 1


def _room(cores: Sequence[int], threads: int) -> int:
    """Return the number of encoders with so many threads that fit, each on one machine."""
    return sum(count // threads for count in cores)


def _leaves(cores: Sequence[int], each: float, io_cpus: float) -> bool:
    """Return whether as many encoders as fit leave CPUs for a task on every machine that runs one."""
    return all(count - math.floor(count / each) * each >= io_cpus for count in cores if count >= each)


def labelled(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether the labels of a machine match a selector of Ray: `v`, `!v`, `in(v, w)`, `!in(v, w)`."""
    return all(_meets(labels.get(key), wanted) for key, wanted in selector.items())


def _meets(value: str | None, wanted: str) -> bool:
    wanted, negated = wanted.removeprefix("!"), wanted.startswith("!")
    if wanted.startswith("in(") and wanted.endswith(")"):
        allowed = {name.strip() for name in wanted[3:-1].split(",")}
    else:
        allowed = {wanted}
    return (value in allowed) != negated


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in sorted(labels.items()))


def _labels_of(machines: Sequence[Machine]) -> str:
    """The labels in use, but for the id that each machine has of its own."""
    seen = {(key, value) for machine in machines for key, value in machine.labels.items() if key != "ray.io/node-id"}
    return ", ".join(f"{key}: {value}" for key, value in sorted(seen)) or "none"
