"""Bad rows are found by deaths alone, all of them and nothing else, and there is an end to the deaths."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import PoisonUnit
from pipeline.execute.attempts import ENCODE_DEATHS, UNIT_DEATHS, UNIT_HANGS, WHOLE, PriorAttempts, _AttemptCounts
from pipeline.execute.stages.encode import EncodeStage, _Work


class Died(BaseException):
    """A process is gone: nothing of ours catches this."""


class Attempt:
    """An attempt, by a book in this process."""

    watched = False

    def __init__(self, attempt_log: _AttemptCounts) -> None:
        self.attempt_log = attempt_log
        known = PriorAttempts("encode", 0, *attempt_log.begin("encode", 0))
        self.check, self.suspect, self.verdict = known.check, known.suspect, known.verdict
        self.at = (0, 0)

    @contextlib.contextmanager
    def trying(self, span):
        self.at = span
        self.attempt_log.trying("encode", 0, span)
        yield
        self.attempt_log.trying("encode", 0, None)

    def timed_out(self, span):
        self.attempt_log.timed_out("encode", 0, span)

    def done(self):
        self.attempt_log.done("encode", 0)


class Stage(EncodeStage):
    """The stage, with an encoder that dies at some rows and hangs at others until its watchdog ends it."""

    def __init__(self, kills: set[int], hangs: set[int], attempt_handle: Attempt) -> None:
        self.kills, self.hangs, self.attempt_handle = kills, hangs, attempt_handle

    def _watched(self, attempt_handle, span):
        return contextlib.nullcontext()

    def _vectors(self, rows):
        numbers = rows.column("number").to_pylist()
        for number in numbers:
            if number in self.hangs:
                self.attempt_handle.timed_out(self.attempt_handle.at)
                raise Died
            if number in self.kills:
                raise Died
        return np.array(numbers, np.float32)[:, None]


def encode(count: int, kills: set[int], hangs: set[int]) -> tuple[_Work, int]:
    """A unit, attempted again and again until an attempt ends by itself; and how many did not."""
    attempt_log = _AttemptCounts()
    for attempt in range(10_000):
        attempt_handle = Attempt(attempt_log)
        attempt_handle.check()
        rows = pa.table({"number": range(count)})
        work = _Work(rows, np.arange(count + 1), np.full((count, 1), -1, np.float32), {})
        with contextlib.suppress(Died):
            Stage(kills, hangs, attempt_handle)._encode_range(work, 0, count, attempt_handle)
            assert attempt_log.total_deaths == attempt
            return work, attempt
    raise AssertionError("the unit never ends")


@settings(deadline=None)
@given(count=st.integers(1, 400), data=st.data())
def test_every_bad_row_is_found_and_the_deaths_are_bounded(count, data):
    some = st.sets(st.integers(0, count - 1), max_size=4)
    hangs = data.draw(some)
    kills = data.draw(some) - hangs
    work, deaths = encode(count, kills, hangs)
    reasons = {row: reason for row, (reason, _) in work.failed.items()}
    assert reasons == dict.fromkeys(kills, "killed_process") | dict.fromkeys(hangs, "timed_out")
    good = [row for row in range(count) if row not in reasons]
    assert work.vectors[good, 0].tolist() == good
    # Two for the unit; then for each row one of the part that it is in, and its own.
    assert deaths <= 2 + 3 * len(kills) + 2 * len(hangs)


def test_a_row_that_hangs_costs_one_death_at_each_step():
    _, deaths = encode(256, set(), {100})
    assert deaths == 3  # 256 rows, 16, 1


def test_a_unit_of_nothing_but_bad_rows_is_given_up():
    with pytest.raises(PoisonUnit, match=f"unit 0 has ended its process {ENCODE_DEATHS} times in the encode stage"):
        encode(400, set(range(400)), set())


@pytest.mark.parametrize(
    ("hangs", "allowed", "why"),
    [
        (
            True,
            UNIT_HANGS,
            " because nothing went forward for longer than run.row_timeout_s; .*a store that never answers",
        ),
        (False, UNIT_DEATHS, "; .*memory, a broken file"),
    ],
)
def test_a_unit_that_ends_its_reader_is_given_up_sooner_where_it_hangs(hangs, allowed, why):
    attempt_log = _AttemptCounts()
    for _ in range(allowed):
        PriorAttempts("read", 7, *attempt_log.begin("read", 7)).check()
        if hangs:
            attempt_log.timed_out("read", 7, WHOLE)
    with pytest.raises(PoisonUnit, match=f"unit 7 has ended its process {allowed} times in the read stage{why}"):
        PriorAttempts("read", 7, *attempt_log.begin("read", 7)).check()


def test_a_unit_that_ended_is_no_longer_suspect():
    attempt_log = _AttemptCounts()
    for _ in range(3):
        attempt_log.begin("write", 7)
    assert attempt_log.stats() == (2, 0)
    attempt_log.done("write", 7)
    assert attempt_log.begin("write", 7) == ({}, frozenset())
    assert attempt_log.stats() == (2, 0)


def test_encoders_at_work_are_counted():
    attempt_log = _AttemptCounts()
    for stage, unit in (("read", 1), ("encode", 2), ("encode", 3), ("write", 4)):
        attempt_log.begin(stage, unit)
    assert attempt_log.stats() == (0, 2)
    attempt_log.done("encode", 2)
    assert attempt_log.stats() == (0, 1)
