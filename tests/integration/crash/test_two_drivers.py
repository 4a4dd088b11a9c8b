"""Two drivers of one table, and one of them dies, or stands still and wakes up late, at each point where it writes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import pytest

from tests.integration.crash.points import distinct_points, one_of_a_kind
from tests.integration.crash.state import difference, state_of

# How one that came second, or woke up late, may say that the table is not its own.
REFUSED = ("TableConflict", "CommitConflict")


def pytest_generate_tests(metafunc):
    """Of a refresh too, where every point is asked for."""
    every_point = metafunc.config.getoption("every_point", default=False)
    metafunc.parametrize("name", ["backfill", "refresh"] if every_point else ["backfill"])


@pytest.fixture
def points(every_point):
    return distinct_points if every_point else one_of_a_kind


def stop(here, caller, place, point):
    """The command, standing still at a point."""
    pid = caller.start(here.do("command", place, replace(point, how=signal.SIGSTOP)))
    assert caller.wait(pid).stopped, "the command ended before it came there"
    return pid


def wrong(found, whole):
    return difference(found, whole, same_version=False).words


def test_a_driver_paused_at_any_point_changes_nothing_afterwards(lab, tally, points, name):
    here = lab(name)

    def attempt(caller, place, point):
        late = stop(here, caller, place, point)
        here.must(caller, "command", place)
        assert difference(state_of(place.table), here.whole).words == []
        woken = caller.wake(late)
        assert woken.kind in ("", *REFUSED), woken.error

    here.each(points(here.calls), attempt, tally=tally)
    assert tally.wrong == []


def test_two_concurrent_drivers_publish_once_when_one_is_killed(lab, tally, points, name):
    here = lab(name)

    def attempt(caller, place, point):
        first = caller.start(here.do("command", place, point))
        second = caller.start(here.do("command", place))
        ended = caller.wait(first)
        assert ended.kind in ("", *REFUSED), ended.error
        survivor = caller.wait(second)
        assert survivor.kind in ("", *REFUSED), survivor.error
        if survivor.kind:
            here.must(caller, "command", place)

    here.each(points(here.calls), attempt, tally=tally)
    assert tally.wrong == []


def test_one_of_two_jobs_of_a_table_is_refused_and_no_rows_are_undone(lab, tally, points, name):
    here = lab(name)

    def attempt(caller, place, point):
        late = stop(here, caller, place, point)
        other = caller.run(here.do("other_job", place))
        assert other.kind in ("", *REFUSED), other.error
        if not other.kind:
            assert wrong(state_of(place.table), here.other_job) == []
        woken = caller.wake(late)
        assert woken.kind in ("", *REFUSED), woken.error
        if other.kind:
            assert not woken.kind, woken.error
            here.must(caller, "other_job", place)
        assert wrong(state_of(place.table), here.other_job) == []
        here.must(caller, "command", place)

    here.each(points(here.calls), attempt, tally=tally, same_version=False)
    assert tally.wrong == []


def test_a_driver_that_lost_its_lock_publishes_nothing_over_the_other_job(lab, tally, points, name):
    """The table lock only prevents double work; the checks of publish keep the table whole."""
    here = lab(name)

    def attempt(caller, place, point):
        late = stop(here, caller, place, point)
        here.must(caller, "other_job_ahead", place)
        woken = caller.wake(late)
        assert woken.kind in ("", *REFUSED), woken.error
        assert wrong(state_of(place.table), here.other_job) == []
        here.must(caller, "command", place)

    here.each(points(here.calls), attempt, tally=tally, same_version=False)
    assert tally.wrong == []


def test_a_vacuum_beside_a_paused_driver_removes_no_file_of_a_version(lab, tally, points, name):
    """It keeps nothing for its age, which is the hardest case. The driver may then find that files are missing."""
    here = lab(name)

    def attempt(caller, place, point):
        late = stop(here, caller, place, point)
        vacuumed = caller.run(here.do("vacuum_ahead", place))
        assert vacuumed.kind in ("", "ConfigError"), vacuumed.error  # there is nothing to vacuum yet
        woken = caller.wake(late)
        assert woken.kind in ("", *REFUSED, "StorageError"), woken.error
        if woken.kind and here.old is not None:
            assert wrong(state_of(place.table), here.old) == []
        if woken.kind == "StorageError":
            assert "remove" in woken.error
            shutil.rmtree(next(place.table.glob(f"_vectide/runs/{woken.error.rpartition('/runs/')[2][:8]}*")))
        here.must(caller, "command", place)

    here.each(points(here.calls), attempt, tally=tally)
    assert tally.wrong == []
