"""Rows that kill or hang a process are found from the deaths alone, and the number of deaths is bounded."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import DeviceLost, PoisonUnit
from actors.vectors import Encoded, dense
from pipeline.execute.attempts import (
    DEVICE_EXIT_CODE,
    ENCODE_DEATHS,
    UNIT_DEATHS,
    UNIT_HANGS,
    WHOLE_UNIT,
    NoAttemptLog,
    PriorAttempts,
    RayAttemptLog,
    _AttemptCounts,
)
from pipeline.execute.stages.encode import EncodeStage, _Work


class Died(BaseException):
    """Simulates the death of the process: the stage does not catch it."""


class Attempt:
    """An attempt recorded in this process."""

    watched = False

    def __init__(self, attempt_log: _AttemptCounts) -> None:
        self.attempt_log = attempt_log
        prior = PriorAttempts("encode", 0, *attempt_log.begin("encode", 0))
        self.check, self.suspect, self.verdict = prior.check, prior.suspect, prior.verdict
        self.span = (0, 0)

    @contextlib.contextmanager
    def trying(self, span):
        self.span = span
        self.attempt_log.trying("encode", 0, span)
        yield
        self.attempt_log.trying("encode", 0, None)

    def timed_out(self, span):
        self.attempt_log.timed_out("encode", 0, span)

    def done(self):
        self.attempt_log.done("encode", 0)


class Stage(EncodeStage):
    """The stage with an encoder that dies at some rows, and hangs at others until the watchdog ends it."""

    def __init__(self, kills: set[int], hangs: set[int], attempt: Attempt) -> None:
        self.kills, self.hangs, self.attempt = kills, hangs, attempt

    def _watched(self, attempt, span):
        return contextlib.nullcontext()

    def _vectors(self, rows):
        numbers = rows.column("number").to_pylist()
        for number in numbers:
            if number in self.hangs:
                self.attempt.timed_out(self.attempt.span)
                raise Died
            if number in self.kills:
                raise Died
        return Encoded((dense(np.array(numbers, np.float32)[:, None]),))


def encode(count: int, kills: set[int], hangs: set[int]) -> tuple[_Work, int]:
    """Attempt a unit until an attempt does not die; return the result and the number of deaths."""
    attempt_log = _AttemptCounts()
    for deaths in range(10_000):
        attempt = Attempt(attempt_log)
        attempt.check()
        rows = pa.table({"number": range(count)})
        work = _Work(rows, np.arange(count + 1), np.zeros(count, np.int64))
        with contextlib.suppress(Died):
            Stage(kills, hangs, attempt)._encode_range(work, 0, count, attempt)
            assert attempt_log.total_deaths == deaths
            return work, deaths
    raise AssertionError("every attempt at the unit dies")


@settings(deadline=None)
@given(count=st.integers(1, 400), data=st.data())
def test_every_failing_row_is_found_and_the_deaths_are_bounded(count, data):
    few_rows = st.sets(st.integers(0, count - 1), max_size=4)
    hangs = data.draw(few_rows)
    kills = data.draw(few_rows) - hangs
    work, deaths = encode(count, kills, hangs)
    reasons = {row: reason for row, (reason, _) in work.failed.items()}
    assert reasons == dict.fromkeys(kills, "killed_process") | dict.fromkeys(hangs, "timed_out")
    good = [row for row in range(count) if row not in reasons]
    vectors = [vector for (part,) in work.encoded for (vector,) in part.to_pylist()]
    assert [vectors[place] for place in work.places[good]] == good
    # Two of the whole unit, one of each smaller range, and those of the row itself.
    assert deaths <= 2 + 3 * len(kills) + 2 * len(hangs)


def test_a_row_that_hangs_costs_one_death_per_level():
    _, deaths = encode(256, set(), {100})
    assert deaths == 3  # ranges of 256, 16 and 1 rows


def test_a_unit_of_only_killing_rows_is_given_up():
    with pytest.raises(PoisonUnit, match=f"unit 0 has ended its process {ENCODE_DEATHS} times in the encode stage"):
        encode(400, set(range(400)), set())


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),  # of torch before 2.8
    ],
)
def test_a_failed_gpu_is_no_bad_row_but_a_death(monkeypatch, error):
    class Failing(Stage):
        def _vectors(self, rows):
            raise error

    attempt_log = _AttemptCounts()
    attempt = Attempt(attempt_log)
    work = _Work(pa.table({"number": range(9)}), np.arange(10), np.zeros(9, np.int64))
    with pytest.raises(DeviceLost, match=r"the GPU failed.*CUDA error.*run.gpus_per_replica=0") as raised:
        Failing(set(), set(), attempt)._encode_range(work, 0, 9, attempt)
    assert work.failed == {}
    with pytest.raises(DeviceLost):  # a run in this process ends with the error
        NoAttemptLog().end_process(raised.value)

    def exit_process(code):
        raise Died(code)

    monkeypatch.setattr("os._exit", exit_process)
    with pytest.raises(Died, match=str(DEVICE_EXIT_CODE)):  # a worker ends its process
        RayAttemptLog.end_process(object.__new__(RayAttemptLog), raised.value)
    assert attempt_log.begin("encode", 0)[0] == {(0, 9): 1}


def test_an_error_of_one_row_is_no_failed_gpu():
    class Refusing(Stage):
        def _vectors(self, rows):
            if 3 in rows.column("number").to_pylist():
                raise RuntimeError("CUBLAS_STATUS_INVALID_VALUE of this row")
            return Encoded((dense(np.zeros((rows.num_rows, 1), np.float32)),))

    attempt = Attempt(_AttemptCounts())
    work = _Work(pa.table({"number": range(9)}), np.arange(10), np.zeros(9, np.int64))
    Refusing(set(), set(), attempt)._encode_range(work, 0, 9, attempt)
    assert list(work.failed) == [3]


@pytest.mark.parametrize(
    ("hangs", "allowed", "why"),
    [
        (
            True,
            UNIT_HANGS,
            " because there was no progress for longer than run.row_timeout_s; .*a store that does not answer",
        ),
        (False, UNIT_DEATHS, "; .*memory, a broken file"),
    ],
)
def test_a_unit_is_given_up_after_fewer_hangs_than_deaths(hangs, allowed, why):
    attempt_log = _AttemptCounts()
    for _ in range(allowed):
        PriorAttempts("read", 7, *attempt_log.begin("read", 7)).check()
        if hangs:
            attempt_log.timed_out("read", 7, WHOLE_UNIT)
    with pytest.raises(PoisonUnit, match=f"unit 7 has ended its process {allowed} times in the read stage{why}"):
        PriorAttempts("read", 7, *attempt_log.begin("read", 7)).check()


def test_a_finished_unit_has_no_prior_deaths():
    attempt_log = _AttemptCounts()
    for _ in range(3):
        attempt_log.begin("write", 7)
    assert attempt_log.stats() == (2, 0)
    attempt_log.done("write", 7)
    assert attempt_log.begin("write", 7) == ({}, frozenset())
    assert attempt_log.stats() == (2, 0)


def test_stats_count_running_encode_attempts():
    attempt_log = _AttemptCounts()
    for stage, unit in (("read", 1), ("encode", 2), ("encode", 3), ("write", 4)):
        attempt_log.begin(stage, unit)
    assert attempt_log.stats() == (0, 2)
    attempt_log.done("encode", 2)
    assert attempt_log.stats() == (0, 1)
