"""Table lock: other runs are refused by name, expired locks are taken over, and only the owner releases a lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors import storage
from actors.errors import TableConflict
from pipeline.ledger import table_lock
from pipeline.ledger.table_lock import TableLock, lock_table


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def elsewhere(lock: TableLock) -> TableLock:
    """Turn a lock into one of another machine, which is alive only as long as it is renewed."""
    lock.me = replace(lock.me, place="another boot pid:[1]", host="far", pid=7)
    return lock


def files(table: Path) -> list[str]:
    return sorted(path.name for path in (table / "_vectide" / "lock").iterdir())


def make(table: Path, run: str, clock: Clock) -> TableLock:
    return TableLock(str(table), run, what="refresh", ttl_s=60, clock=clock)


def test_another_run_is_refused_with_the_name_of_the_owner(tmp_path, clock):
    elsewhere(make(tmp_path, "a", clock)).take()
    clock.now += 12
    with pytest.raises(TableConflict, match="held by refresh .run a, host far, process 7, since .* UTC, .* 12 s ago"):
        make(tmp_path, "b", clock).take()


def test_released_lock_is_free_at_once(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.take()
    first.release()
    second = make(tmp_path, "b", clock)
    second.take()
    assert files(tmp_path) == ["00000002.json"]
    second.check()


def test_lock_without_renewal_is_taken_over_and_its_owner_gets_an_error(tmp_path, clock):
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


def test_check_unbroken_finds_a_run_that_held_the_lock_in_between(tmp_path, clock):
    """Publishing reads the table again; a vacuum has listed the files to remove and does not."""
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


def test_lock_of_an_ended_local_process_is_free(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.me = replace(first.me, pid=2**22 + 1)  # above the highest number that Linux gives
    first.take()
    make(tmp_path, "b", clock).take()


def test_lock_of_an_ended_process_whose_number_is_reused_is_free(tmp_path, clock):
    first = make(tmp_path, "a", clock)
    first.me = replace(first.me, process="1")
    first.take()
    make(tmp_path, "b", clock).take()


def test_release_leaves_the_lock_of_another_run(tmp_path, clock):
    first = elsewhere(make(tmp_path, "a", clock))
    first.take()
    clock.now += 61
    second = elsewhere(make(tmp_path, "b", clock))
    second.take()
    first.release()
    with pytest.raises(TableConflict, match="run b"):
        make(tmp_path, "c", clock).take()


def test_concurrent_drivers_share_the_lock_until_the_last_releases(tmp_path, clock):
    first, second = make(tmp_path, "a", clock), make(tmp_path, "a", clock)
    first.take()
    second.take()
    first.renew()
    first.check()  # a concurrent driver of the run is no conflict
    second.release()
    first.renew()
    with pytest.raises(TableConflict, match="run a"):
        make(tmp_path, "b", clock).take()
    first.release()
    make(tmp_path, "b", clock).take()


@pytest.fixture
def neighbour():
    """Another live process of this machine."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def alone(table: Path, clock: Clock, pid: int | None = None) -> TableLock:
    """Make a lock that a second process of its run may not take, as process `pid`; by default as this one."""
    lock = TableLock(str(table), "a", what="train", alone=True, ttl_s=60, clock=clock)
    if pid is not None:
        lock.me = replace(lock.me, pid=pid, process=table_lock._start_of(pid))
    return lock


def test_a_lock_alone_is_refused_to_a_second_process_of_the_run(tmp_path, clock, neighbour):
    first = alone(tmp_path, clock, neighbour.pid)
    first.take()
    clock.now += 3
    said = rf"held by train .run a, .* process {neighbour.pid}, .* 3 s ago., which is the same run in another process.* wait"
    with pytest.raises(TableConflict, match=said):
        alone(tmp_path, clock).take()
    alone(tmp_path, clock, neighbour.pid).take()  # again in one process, after a release that failed
    make(tmp_path, "a", clock).take()  # a driver that shares its ledger


def test_a_lock_alone_is_free_once_its_process_is_killed(tmp_path, clock, neighbour):
    alone(tmp_path, clock, neighbour.pid).take()
    neighbour.kill()
    os.waitid(os.P_PID, neighbour.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still in the list of processes
    alone(tmp_path, clock).take()


def test_a_lock_alone_does_not_wait_for_another_machine(tmp_path, clock):
    elsewhere(alone(tmp_path, clock)).take()
    alone(tmp_path, clock).take()


def test_a_lock_alone_does_not_wait_where_ended_processes_cannot_be_told(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(table_lock, "_place", lambda: "")
    first = alone(tmp_path, clock)
    first.me = replace(first.me, pid=7)
    first.take()
    alone(tmp_path, clock).take()


def test_a_lock_alone_is_lost_to_a_second_process_that_took_it_after_a_stall(tmp_path, clock, neighbour):
    first = alone(tmp_path, clock)
    first.take()
    clock.now += 61
    alone(tmp_path, clock, neighbour.pid).take()
    with pytest.raises(TableConflict, match="was taken by train"):
        first.check()


def test_the_live_owner_is_shown(tmp_path, clock):
    lock = make(tmp_path, "a", clock)
    assert lock.live_owner() is None
    lock.take()
    assert make(tmp_path, "", clock).live_owner() == lock.me
    clock.now += 61
    assert lock.live_owner() is None


def test_one_of_many_concurrent_runs_takes_an_expired_lock(tmp_path, clock):
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


def test_run_with_an_old_listing_does_not_take_the_lock(tmp_path, clock, monkeypatch):
    """Two runs saw the same expired lock, and one of them stalled before it acted on that."""
    stale = elsewhere(make(tmp_path, "stale", clock))
    stale.take()
    clock.now += 61
    late = make(tmp_path, "late", clock)
    seen = late._newest()
    for run in ("b", "c"):  # b takes number 2 and releases it, c takes 3; 1 and 2 are deleted
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


def test_driver_whose_number_was_deleted_by_another_takes_the_next(tmp_path, clock, monkeypatch):
    """A local folder is listed first and its files read afterwards; files deleted in between are missing."""
    mine, other = make(tmp_path, "a", clock), make(tmp_path, "a", clock)
    fresh = mine._numbers

    def numbers() -> list[int]:
        if fresh() == [1] and not other.number:
            other.take()
            return []
        return fresh()

    monkeypatch.setattr(mine, "_numbers", numbers)
    mine.take()
    assert (other.number, mine.number) == (2, 3)
    assert files(tmp_path) == ["00000003.json"]


def test_unreadable_lock_file_is_an_error(tmp_path, clock):
    storage.put(storage.join(str(tmp_path), "_vectide", "lock", "00000004.json"), b"{}")
    with pytest.raises(TableConflict, match="does not name an owner"):
        make(tmp_path, "a", clock).take()


def test_failed_run_releases_the_lock(tmp_path):
    def fail() -> None:
        with lock_table(str(tmp_path), "a", what="backfill") as lock:
            lock.check()
            with pytest.raises(TableConflict, match="held by backfill"):
                make(tmp_path, "b", Clock()).take()
            raise ZeroDivisionError("half-way")

    with pytest.raises(ZeroDivisionError, match="half-way"):
        fail()
    with lock_table(str(tmp_path), "b", what="refresh"):
        pass
