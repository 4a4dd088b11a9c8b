"""Counts crashed attempts per unit and row range, outside the worker process.

A row can kill its process (a crash in native code, the out-of-memory killer), and Ray restarts the process without
limit. So every stage records the begin and the end of each attempt here. An attempt that began and did not end has died.
After a few deaths the encode stage narrows the row range until it finds the row. A lost node looks the same, so a range
is suspect after two deaths, and a single row is given up after two more. The attempt log is one small actor per run; a
call to it costs about a millisecond per unit.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from actors.errors import PoisonUnit, VectideError

SUSPECT_AFTER = 2
UNIT_DEATHS = 4
# Hangs are reported explicitly, so two are enough to give up. Each costs `run.row_timeout_s`.
UNIT_HANGS = 2
# Narrowing costs up to three deaths per invalid row. More than about twenty such rows in a unit have another cause.
ENCODE_DEATHS = 64
Span = tuple[int, int]  # row range [low, high) of a unit
WHOLE_UNIT: Span = (-1, -1)  # the whole unit
_REPORT_TIMEOUT_S = 20.0
HANG_EXIT_CODE = 70  # exit code of a process that the watchdog ended
DEVICE_EXIT_CODE = 71  # exit code of a process whose GPU failed
STDERR = 2  # the file descriptor: a worker may replace `sys.stderr`


class _AttemptCounts:
    """Deaths by stage, unit and row range, and the range that each running attempt is at."""

    def __init__(self) -> None:
        self._trying: dict[tuple[str, int], Span | None] = {}
        self._deaths: dict[tuple[str, int], Counter[Span]] = {}
        self._timed_out: dict[tuple[str, int], set[Span]] = {}
        self.total_deaths = 0

    def begin(self, stage: str, unit: int) -> tuple[dict[Span, int], frozenset[Span]]:
        """Begin an attempt at a unit; an earlier attempt that did not end counts as dead.

        Returns:
            Deaths by row range, and the row ranges that timed out.
        """
        key = (stage, unit)
        if key in self._trying:
            self._deaths.setdefault(key, Counter())[self._trying[key] or WHOLE_UNIT] += 1
            self.total_deaths += 1
        self._trying[key] = None
        return dict(self._deaths.get(key, {})), frozenset(self._timed_out.get(key, ()))

    def trying(self, stage: str, unit: int, span: Span | None) -> None:
        """Record the row range that the attempt is at."""
        self._trying[(stage, unit)] = span

    def timed_out(self, stage: str, unit: int, span: Span) -> None:
        """Record that the watchdog is ending the process at this row range. The next attempt counts the death."""
        self._timed_out.setdefault((stage, unit), set()).add(span)

    def done(self, stage: str, unit: int) -> None:
        """Record that the attempt ended, with or without an error."""
        self._trying.pop((stage, unit), None)
        self._deaths.pop((stage, unit), None)
        self._timed_out.pop((stage, unit), None)

    def stats(self) -> tuple[int, int]:
        """Return the number of deaths in this run, and the number of encoders at work."""
        return self.total_deaths, sum(stage == "encode" for stage, _ in self._trying)


class Attempt(Protocol):
    """One attempt at one unit in one stage."""

    watched: bool

    def check(self) -> None:
        """Raise PoisonUnit if this unit has killed its process too often."""

    def suspect(self, span: Span) -> bool:
        """Return True if these rows must not be encoded together again, but in smaller ranges."""

    def verdict(self, span: Span) -> tuple[str, str] | None:
        """Return reason and error of a row that must not be encoded again; None for all other ranges."""

    def trying(self, span: Span) -> contextlib.AbstractContextManager[None]:
        """Record the row range during the `with` block."""

    def timed_out(self, span: Span) -> None:
        """Record that the watchdog is ending this process at this row range."""

    def done(self) -> None:
        """Record that the attempt ended."""


class AttemptLog(Protocol):
    """Record of the attempts of a run."""

    def attempt(self, stage: str, unit: int) -> Attempt:
        """Begin an attempt."""

    def stats(self) -> tuple[int, int]:
        """Return the number of deaths in this run, and the number of encoders at work."""

    def end_process(self, error: VectideError) -> NoReturn:
        """End this worker, so that a new one tries the unit again; raise the error if there are no workers."""


class NoAttemptLog:
    """Attempt log of an inline run, which records nothing.

    If the process dies, no other process can read a log. The same command then resumes the run with workers.
    """

    def attempt(self, stage: str, unit: int) -> Attempt:
        """Begin an attempt without prior attempts."""
        return _InlineAttempt(stage, unit)

    def stats(self) -> tuple[int, int]:
        """Return no deaths and one encoder: this process."""
        return 0, 1

    def end_process(self, error: VectideError) -> NoReturn:
        """Raise the error, which ends the run."""
        raise error


@dataclass(slots=True)
class _InlineAttempt:
    """An attempt in an inline run, which records nothing."""

    stage: str
    unit: int
    watched: bool = True

    def check(self) -> None:
        """Do nothing."""

    def suspect(self, span: Span) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def verdict(self, span: Span) -> tuple[str, str] | None:  # noqa: ARG002
        """Return None."""
        return None

    def trying(self, span: Span) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing."""
        return contextlib.nullcontext()

    def timed_out(self, span: Span) -> None:  # noqa: ARG002
        """Print an error for the user and end the process, and so the run."""
        message = (
            f"\nerror: no progress in the {self.stage} stage of unit {self.unit} for longer than run.row_timeout_s, so "
            f"this process ended itself. Finished units are kept. Run the same command again: it resumes with workers, "
            f"which find a row that hangs and quarantine it (run.address: inline has no workers, so use local)\n"
        )
        os.write(STDERR, message.encode())  # not `sys.stderr`: the hanging thread may hold its lock
        os._exit(HANG_EXIT_CODE)

    def done(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class PriorAttempts:
    """The earlier attempts at a unit when a new attempt begins, and the decisions that follow from them.

    Attributes:
        deaths: Number of attempts that died at exactly this row range.
        timed_out: Row ranges at which the watchdog ended the process.
    """

    stage: str
    unit: int
    deaths: dict[Span, int]
    timed_out: frozenset[Span]

    def check(self) -> None:
        """Raise PoisonUnit if this unit has killed its process too often."""
        hung = WHOLE_UNIT in self.timed_out
        allowed = ENCODE_DEATHS if self.stage == "encode" else UNIT_HANGS if hung else UNIT_DEATHS
        if (deaths := sum(self.deaths.values())) >= allowed:
            limit = "ten minutes" if self.stage == "rewrite" else "run.row_timeout_s"  # a compaction has no job file
            why = f" because there was no progress for longer than {limit}" if hung else ""
            causes = "a store that does not answer, a file that hangs its reader" if hung else "memory, a broken file"
            raise PoisonUnit(
                f"unit {self.unit} has ended its process {deaths} times in the {self.stage} stage{why}; it is not tried "
                f"again. Look for the cause ({causes}) in the workers' logs, then run the same command again"
            )

    def suspect(self, span: Span) -> bool:
        """Return True if these rows must not be encoded together again, but in smaller ranges."""
        low, high = span
        deaths = SUSPECT_AFTER if span in self.timed_out else self.deaths.get(span, 0)
        # Inside a range that is suspect already, one death is enough.
        within = any(seen[0] <= low and high <= seen[1] and seen != span for seen in self.deaths)
        return high - low > 1 and (deaths >= SUSPECT_AFTER or (deaths >= 1 and within))

    def verdict(self, span: Span) -> tuple[str, str] | None:
        """Return reason and error of a row that must not be encoded again; None for all other ranges."""
        if span[1] - span[0] != 1:
            return None
        if span in self.timed_out:
            return "timed_out", "the encoder made no progress on this row for longer than run.row_timeout_s"
        if (deaths := self.deaths.get(span, 0)) >= SUSPECT_AFTER:
            return "killed_process", f"the process died {deaths} times on this row"
        return None


class _RayAttempt:
    """An attempt that the actor of the attempt log records."""

    watched = True

    def __init__(self, actor: Any, stage: str, unit: int) -> None:
        import ray

        self._actor = actor
        self._key = (stage, unit)
        prior = PriorAttempts(stage, unit, *ray.get(actor.begin.remote(stage, unit)))
        self.check, self.suspect, self.verdict = prior.check, prior.suspect, prior.verdict

    @contextlib.contextmanager
    def trying(self, span: Span) -> Iterator[None]:
        """Record the row range during the `with` block.

        Waits until the actor has recorded it; otherwise a crash right after the call would not count for the range.
        """
        import ray

        ray.get(self._actor.trying.remote(*self._key, span))
        yield
        self._actor.trying.remote(*self._key, None)

    def timed_out(self, span: Span) -> None:
        """Record that the watchdog is ending this process at this row range."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # without the record it counts as an ordinary death
            ray.get(self._actor.timed_out.remote(*self._key, span), timeout=_REPORT_TIMEOUT_S)

    def done(self) -> None:
        """Record that the attempt ended."""
        self._actor.done.remote(*self._key)


class RayAttemptLog:
    """Handle of the attempt log for the stages. Picklable; the driver creates it."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AttemptCounts)
        self._actor: Any = remote.options(scheduling_strategy=this_node).remote()

    def attempt(self, stage: str, unit: int) -> Attempt:
        """Begin an attempt."""
        return _RayAttempt(self._actor, stage, unit)

    def stats(self) -> tuple[int, int]:
        """Return the number of deaths in this run, and the number of encoders at work."""
        import ray

        deaths, busy = ray.get(self._actor.stats.remote())
        return deaths, busy

    def end_process(self, error: VectideError) -> NoReturn:
        """End this worker. The attempt has not ended, so it counts as a death."""
        os.write(STDERR, f"error: {error}\n".encode())
        os._exit(DEVICE_EXIT_CODE)
