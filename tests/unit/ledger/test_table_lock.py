"""A table has one holder: others are refused by name, what died is taken over, and nobody gives back what is not theirs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors import storage
from actors.errors import TableConflict
from pipeline.ledger.table_lock import TableLock, lock_table


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(held: TableLock) -> TableLock:
    """The same, as a process of another machine: whether it lives is seen by its beats alone."""
    held.me = replace(held.me, place="another boot pid:[1]", host="far", pid=7)
    return held


def files(table: Path) -> list[str]:
    return sorted(path.name for path in (table / "_vectide" / "lock").iterdir())


def make(table: Path, run: str, clock: Clock) -> TableLock:
    return TableLock(str(table), run, what="refresh", ttl_s=60, clock=clock)


def test_another_run_is_refused_with_the_name_of_the_holder(tmp_path, clock):
    elsewhere(make(tmp_path, "a", clock)).take()
    clock.now += 12
    with pytest.raises(TableConflict, match="held by refresh .run a, host far, process 7, since .* UTC, .* 12 s ago"):
        make(tmp_path, "b", clock).take()


def test_a_table_that_was_given_back_is_free_at_once(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.take()
    first.release()
    second = make(tmp_path, "b", clock)
    second.take()
    assert files(tmp_path) == ["00000002.json"]
    second.check()


def test_a_holder_without_a_sign_of_life_is_followed_and_told(tmp_path, clock):
    first = elsewhere(make(tmp_path, "a", clock))
    first.take()
    clock.now += 59
    first.renew()
    clock.now += 59
    with pytest.raises(TableConflict, match="held by"):
        make(tmp_path, "b", clock).take()
    clock.now += 2
    second = make(tmp_path, "b", clock)
    second.take()
    with pytest.raises(TableConflict, match="was taken by refresh .run b"):
        first.check()


def test_who_is_about_to_remove_is_told_of_a_run_that_came_and_went(tmp_path, clock):
    """Publishing looks at the table again; a vacuum has made its list and would not."""
    first = elsewhere(make(tmp_path, "vacuum", clock))
    first.take()
    first.check_unbroken()
    clock.now += 61
    second = elsewhere(make(tmp_path, "b", clock))
    second.take()
    second.release()
    first.check()
    with pytest.raises(TableConflict, match="held by another run meanwhile.* Nothing was removed"):
        first.check_unbroken()


def test_a_process_of_this_machine_that_is_gone_holds_nothing(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.me = replace(first.me, pid=2**22 + 1)  # above the highest number that Linux gives
    first.take()
    make(tmp_path, "b", clock).take()


def test_a_process_with_the_number_of_one_that_is_gone_is_not_taken_for_it(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.me = replace(first.me, process="1")
    first.take()
    make(tmp_path, "b", clock).take()


def test_one_gives_back_only_ones_own(tmp_path, clock):
    first = elsewhere(make(tmp_path, "a", clock))
    first.take()
    clock.now += 61
    second = elsewhere(make(tmp_path, "b", clock))
    second.take()
    first.release()
    with pytest.raises(TableConflict, match="run b"):
        make(tmp_path, "c", clock).take()


def test_the_same_run_shares_and_whoever_stays_longer_holds_on(tmp_path, clock):
    first, sister = make(tmp_path, "a", clock), make(tmp_path, "a", clock)
    first.take()
    sister.take()
    first.renew()
    first.check()  # a sister is no loss
    sister.release()
    first.renew()
    with pytest.raises(TableConflict, match="run a"):
        make(tmp_path, "b", clock).take()
    first.release()
    make(tmp_path, "b", clock).take()


def test_of_many_that_come_at_once_exactly_one_holds(tmp_path, clock):
    """Every holder is another run, over a stale hold that all of them may break."""
    stale = elsewhere(make(tmp_path, "stale", clock))
    stale.take()
    clock.now += 61
    gate = threading.Barrier(16)

    def race(number: int) -> bool:
        mine = elsewhere(make(tmp_path, f"run {number}", clock))
        gate.wait()
        try:
            mine.take()
        except TableConflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(race, range(16))) == 1
    assert len(files(tmp_path)) == 1


def test_who_comes_with_an_old_listing_steps_back(tmp_path, clock, monkeypatch):
    """The dangerous moment of any lease: two saw the same stale holder, and one of them was away since."""
    stale = elsewhere(make(tmp_path, "stale", clock))
    stale.take()
    clock.now += 61
    late = make(tmp_path, "late", clock)
    seen = late._newest()
    for run in ("b", "c"):  # b takes number 2 and gives it back, c takes 3; 1 and 2 are cleared away
        other = elsewhere(make(tmp_path, run, clock))
        other.take()
        if run == "b":
            other.release()
    fresh = late._newest
    answers = iter([seen])
    monkeypatch.setattr(late, "_newest", lambda: next(answers, None) or fresh())
    with pytest.raises(TableConflict, match="run c"):
        late.take()
    assert files(tmp_path) == ["00000003.json"]


def test_who_finds_its_own_number_cleared_away_by_a_sister_takes_the_next(tmp_path, clock, monkeypatch):
    """A folder of a local disk is listed first and looked at afterwards: what went in between is in neither."""
    mine, sister = make(tmp_path, "a", clock), make(tmp_path, "a", clock)
    fresh = mine._numbers

    def numbers() -> list[int]:
        if fresh() == [1] and not sister.number:
            sister.take()
            return []
        return fresh()

    monkeypatch.setattr(mine, "_numbers", numbers)
    mine.take()
    assert (sister.number, mine.number) == (2, 3)
    assert files(tmp_path) == ["00000003.json"]


def test_a_file_that_says_nothing_is_not_walked_over(tmp_path, clock):
    storage.put(storage.join(str(tmp_path), "_vectide", "lock", "00000004.json"), b"{}")
    with pytest.raises(TableConflict, match="does not say who holds"):
        make(tmp_path, "a", clock).take()


def test_a_run_that_fails_gives_the_table_back(tmp_path):
    def fail() -> None:
        with lock_table(str(tmp_path), "a", what="backfill") as held:
            held.check()
            with pytest.raises(TableConflict, match="held by backfill"):
                make(tmp_path, "b", Clock()).take()
            raise ZeroDivisionError("half-way")

    with pytest.raises(ZeroDivisionError, match="half-way"):
        fail()
    with lock_table(str(tmp_path), "b", what="refresh"):
        pass
