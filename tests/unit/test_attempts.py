"""Bad rows are found by deaths alone, all of them and nothing else, and there is an end to the deaths."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import PoisonUnit
from pipeline.attempts import ENCODE_DEATHS, UNIT_DEATHS, UNIT_HANGS, WHOLE, Known, _Book
from pipeline.stages import EncodeStage, _Work


class Died(BaseException):
    """A process is gone: nothing of ours catches this."""


class Lease:
    """An attempt, by a book in this process."""

    watched = False

    def __init__(self, book: _Book) -> None:
        self.book = book
        known = Known("encode", 0, *book.begin("encode", 0))
        self.check, self.suspect, self.verdict = known.check, known.suspect, known.verdict
        self.at = (0, 0)

    @contextlib.contextmanager
    def trying(self, span):
        self.at = span
        self.book.trying("encode", 0, span)
        yield
        self.book.trying("encode", 0, None)

    def timed_out(self, span):
        self.book.timed_out("encode", 0, span)

    def done(self):
        self.book.done("encode", 0)


class Stage(EncodeStage):
    """The stage, with an encoder that dies at some rows and hangs at others until its watchdog ends it."""

    def __init__(self, kills: set[int], hangs: set[int], lease: Lease) -> None:
        self.kills, self.hangs, self.lease = kills, hangs, lease

    def _watched(self, lease, span):
        return contextlib.nullcontext()

    def _vectors(self, rows):
        numbers = rows.column("number").to_pylist()
        for number in numbers:
            if number in self.hangs:
                self.lease.timed_out(self.lease.at)
                raise Died
            if number in self.kills:
                raise Died
        return np.array(numbers, np.float32)[:, None]


def encode(count: int, kills: set[int], hangs: set[int]) -> tuple[_Work, int]:
    """A unit, attempted again and again until an attempt ends by itself; and how many did not."""
    book = _Book()
    for attempt in range(10_000):
        lease = Lease(book)
        lease.check()
        rows = pa.table({"number": range(count)})
        work = _Work(rows, np.arange(count + 1), np.full((count, 1), -1, np.float32), {})
        with contextlib.suppress(Died):
            Stage(kills, hangs, lease)._encode_range(work, 0, count, lease)
            assert book.total_deaths == attempt
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
    book = _Book()
    for _ in range(allowed):
        Known("read", 7, *book.begin("read", 7)).check()
        if hangs:
            book.timed_out("read", 7, WHOLE)
    with pytest.raises(PoisonUnit, match=f"unit 7 has ended its process {allowed} times in the read stage{why}"):
        Known("read", 7, *book.begin("read", 7)).check()


def test_a_unit_that_ended_is_no_longer_suspect():
    book = _Book()
    for _ in range(3):
        book.begin("write", 7)
    assert book.pulse() == (2, 0)
    book.done("write", 7)
    assert book.begin("write", 7) == ({}, frozenset())
    assert book.pulse() == (2, 0)


def test_encoders_at_work_are_counted():
    book = _Book()
    for stage, unit in (("read", 1), ("encode", 2), ("encode", 3), ("write", 4)):
        book.begin(stage, unit)
    assert book.pulse() == (0, 2)
    book.done("encode", 2)
    assert book.pulse() == (0, 1)
