"""Who died on what: attempts at a unit, counted outside the process that makes them.

A row can kill its process (a crash in native code, the out-of-memory killer), and Ray starts the process again for
ever. So every stage says here what it is about to do and when it is done. What was begun by an attempt and never done
is a death; after a few the encode stage narrows the rows until the one that kills is found. A node that goes
away looks the same, so it takes two deaths to suspect a range, and two more of a single row to condemn it.
The book is one small actor a run; asking it costs about a millisecond a unit.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from actors.errors import PoisonUnit

SUSPECT_AFTER = 2
UNIT_DEATHS = 4
# One that hung has said so: nothing else looks like it, and each time costs `run.row_timeout_s`.
UNIT_HANGS = 2
# The encode stage narrows, at up to three deaths a bad row; more than some twenty of them in a unit is not the rows.
ENCODE_DEATHS = 64
Span = tuple[int, int]
WHOLE: Span = (-1, -1)
_LAST_WORDS_S = 20.0
HUNG = 70  # exit code of a process that ended itself
STDERR = 2  # the descriptor: `sys.stderr` may be anything in a worker


class _AttemptCounts:
    """The pages: deaths by (stage, unit, span), and what is being tried now."""

    def __init__(self) -> None:
        self._trying: dict[tuple[str, int], Span | None] = {}
        self._deaths: dict[tuple[str, int], Counter[Span]] = {}
        self._timed_out: dict[tuple[str, int], set[Span]] = {}
        self.total_deaths = 0

    def begin(self, stage: str, unit: int) -> tuple[dict[Span, int], frozenset[Span]]:
        """A new attempt at a unit; an older one that never ended has died. What is known: deaths, and time-outs."""
        key = (stage, unit)
        if key in self._trying:
            self._deaths.setdefault(key, Counter())[self._trying[key] or WHOLE] += 1
            self.total_deaths += 1
        self._trying[key] = None
        return dict(self._deaths.get(key, {})), frozenset(self._timed_out.get(key, ()))

    def trying(self, stage: str, unit: int, span: Span | None) -> None:
        """The rows that the attempt is at."""
        self._trying[(stage, unit)] = span

    def timed_out(self, stage: str, unit: int, span: Span) -> None:
        """The last words of a process that ends itself, because nothing went forward at these rows. The next attempt
        finds it dead like any other."""
        self._timed_out.setdefault((stage, unit), set()).add(span)

    def done(self, stage: str, unit: int) -> None:
        """The attempt ended by itself, well or not."""
        self._trying.pop((stage, unit), None)
        self._deaths.pop((stage, unit), None)
        self._timed_out.pop((stage, unit), None)

    def stats(self) -> tuple[int, int]:
        """How many attempts have died in this run, and how many encoders are at work."""
        return self.total_deaths, sum(stage == "encode" for stage, _ in self._trying)


class Attempt(Protocol):
    """One attempt at one unit in one stage."""

    watched: bool

    def check(self) -> None:
        """Raise PoisonUnit where this unit has killed its process too often."""

    def suspect(self, span: Span) -> bool:
        """Whether these rows together are not to be tried again: they must be narrowed."""

    def verdict(self, span: Span) -> tuple[str, str] | None:
        """Reason and error of a row that is not to be tried again."""

    def trying(self, span: Span) -> contextlib.AbstractContextManager[None]:
        """Say which rows are at work."""

    def timed_out(self, span: Span) -> None:
        """Say that this process ends itself now, because nothing goes forward at these rows."""

    def done(self) -> None:
        """The attempt ended by itself."""


class AttemptLog(Protocol):
    """Where attempts are written down."""

    def attempt(self, stage: str, unit: int) -> Attempt:
        """Begin an attempt."""

    def stats(self) -> tuple[int, int]:
        """How many attempts have died in this run so far, and how many encoders are at work."""


class NoAttemptLog:
    """For a run inside one process: if that dies, nobody is left to ask, and the same command goes on with workers."""

    def attempt(self, stage: str, unit: int) -> Attempt:
        """An attempt that nothing is known of."""
        return _InlineAttempt(stage, unit)

    def stats(self) -> tuple[int, int]:
        """No death that can be told; the one that asks is at work."""
        return 0, 1


@dataclass(slots=True)
class _InlineAttempt:
    """An attempt that nobody else knows of."""

    stage: str
    unit: int
    watched: bool = True

    def check(self) -> None:
        """Never refused."""

    def suspect(self, span: Span) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def verdict(self, span: Span) -> tuple[str, str] | None:  # noqa: ARG002
        """None."""
        return None

    def trying(self, span: Span) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Not written down."""
        return contextlib.nullcontext()

    def timed_out(self, span: Span) -> None:  # noqa: ARG002
        """End the run: it is this process that hangs. With a sentence, for a person waits for it."""
        said = (
            f"\nerror: nothing went forward in the {self.stage} stage of unit {self.unit} for too long (run.row_timeout_s), so "
            f"this process ended itself. What was finished is kept. Run the same command again: it goes on with workers, "
            f"which find a row that hangs and set it aside (with run.address: inline there are none, so name local)\n"
        )
        os.write(STDERR, said.encode())  # not `sys.stderr`: a thread that hangs may hold its lock
        os._exit(HUNG)

    def done(self) -> None:
        """Not written down."""


@dataclass(frozen=True, slots=True)
class PriorAttempts:
    """What was known of a unit when an attempt at it began, and what follows from it.

    Attributes:
        deaths: How many attempts died while they were at exactly these rows.
        timed_out: Rows at which one ended itself.
    """

    stage: str
    unit: int
    deaths: dict[Span, int]
    timed_out: frozenset[Span]

    def check(self) -> None:
        """Raise PoisonUnit where this unit has killed its process too often."""
        hung = WHOLE in self.timed_out
        allowed = ENCODE_DEATHS if self.stage == "encode" else UNIT_HANGS if hung else UNIT_DEATHS
        if (deaths := sum(self.deaths.values())) >= allowed:
            limit = "ten minutes" if self.stage == "rewrite" else "run.row_timeout_s"  # a compaction has no job file
            why = f" because nothing went forward for longer than {limit}" if hung else ""
            reason = "a store that never answers, a file that hangs its reader" if hung else "memory, a broken file"
            raise PoisonUnit(
                f"unit {self.unit} has ended its process {deaths} times in the {self.stage} stage{why}; it was given up. "
                f"Look for the reason ({reason}) in the workers' logs, then run the same command again"
            )

    def suspect(self, span: Span) -> bool:
        """Whether these rows together are not to be tried again: they must be narrowed."""
        low, high = span
        deaths = SUSPECT_AFTER if span in self.timed_out else self.deaths.get(span, 0)
        # Inside rows that are suspect already, one more death says enough.
        within = any(seen[0] <= low and high <= seen[1] and seen != span for seen in self.deaths)
        return high - low > 1 and (deaths >= SUSPECT_AFTER or (deaths >= 1 and within))

    def verdict(self, span: Span) -> tuple[str, str] | None:
        """Reason and error of a row that is not to be tried again."""
        if span[1] - span[0] != 1:
            return None
        if span in self.timed_out:
            return "timed_out", "the encoder did not go forward on this row for longer than run.row_timeout_s"
        if (deaths := self.deaths.get(span, 0)) >= SUSPECT_AFTER:
            return "killed_process", f"the process died {deaths} times on this row"
        return None


class _RayAttempt:
    """An attempt that the book's actor knows of."""

    watched = True

    def __init__(self, actor: Any, stage: str, unit: int) -> None:
        import ray

        self._actor = actor
        self._key = (stage, unit)
        known = PriorAttempts(stage, unit, *ray.get(actor.begin.remote(stage, unit)))
        self.check, self.suspect, self.verdict = known.check, known.suspect, known.verdict

    @contextlib.contextmanager
    def trying(self, span: Span) -> Iterator[None]:
        """Say which rows are at work. Waits for the book to know, or a crash right after would be nobody's."""
        import ray

        ray.get(self._actor.trying.remote(*self._key, span))
        yield
        self._actor.trying.remote(*self._key, None)

    def timed_out(self, span: Span) -> None:
        """Say that this process ends itself now, because nothing goes forward at these rows."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # then it is one more death without last words
            ray.get(self._actor.timed_out.remote(*self._key, span), timeout=_LAST_WORDS_S)

    def done(self) -> None:
        """The attempt ended by itself."""
        self._actor.done.remote(*self._key)


class RayAttemptLog:
    """The handle that stages hold. Picklable; made once by the driver."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_AttemptCounts)
        self._actor: Any = remote.options(scheduling_strategy=here).remote()

    def attempt(self, stage: str, unit: int) -> Attempt:
        """Begin an attempt."""
        return _RayAttempt(self._actor, stage, unit)

    def stats(self) -> tuple[int, int]:
        """How many attempts have died in this run so far, and how many encoders are at work."""
        import ray

        deaths, busy = ray.get(self._actor.stats.remote())
        return deaths, busy
