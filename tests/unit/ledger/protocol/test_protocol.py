"""The protocol in every order of its steps, with a crash at each: a version always has the same complete set of rows."""

from __future__ import annotations

import pytest

from tests.unit.ledger.protocol.explorer import alone, explore
from tests.unit.ledger.protocol.programs import ROWS, Process, Rules, Stage


def driver(name, content="x", *, cut=0, rules=None):
    return Stage("start", (Process(name, 0, content, cut, rules or Rules()),))


def vacuum(rules=None):
    return Stage("vacuum", (Process("v", 0, "", 0, rules or Rules()),))


def same_job(rules=None):
    """Two drivers of one job, which cut the corpus differently."""
    return driver("a", rules=rules), driver("b", cut=1, rules=rules)


def two_jobs(rules=None):
    """Drivers of two jobs with one table."""
    return driver("a", rules=rules), driver("b", "y", cut=1, rules=rules)


# Programs to explore, crashes, and how often a process that is alive may be taken for dead.
SCENARIOS = {
    "one driver that crashes twice": ((driver("a"),), 2, 0),
    "two drivers of one job": (same_job(), 0, 0),
    "two jobs of one table": (two_jobs(), 1, 0),
    "two jobs, one of which seems dead": (two_jobs(), 0, 2),
    "a driver and a vacuum": ((driver("a"), vacuum()), 1, 2),
    "a driver and a vacuum that keeps no file for its age": ((driver("a"), vacuum(Rules(keep=False))), 1, 0),
    "the same, and one seems dead": ((driver("a"), vacuum(Rules(keep=False))), 0, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_order_of_steps_changes_a_version_or_loses_a_file(scenario):
    programs, crashes, stalls = SCENARIOS[scenario]
    result = explore(programs, crashes=crashes, stalls=stalls)
    assert (result.violation, result.trail) == ("", ())
    assert "published" in result.outcomes
    assert result.states > 500


@pytest.mark.slow
def test_two_drivers_of_one_job_with_one_crash():
    """The largest exploration: two hundred thousand states."""
    result = explore(same_job(), crashes=1)
    assert (result.violation, result.trail) == ("", ())


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario", ["one driver that crashes twice", "two drivers of one job", "two jobs of one table"]
)
def test_same_command_completes_the_version_after_any_crash(scenario):
    programs, crashes, stalls = SCENARIOS[scenario]
    stores = explore(programs, crashes=crashes, stalls=stalls).stores
    for store in stores:
        outcome, after = alone(driver("z"), store)
        assert outcome in ("published", "nothing to do")
        versions = {path[1]: value for path, value in after if path[0] == "log"}
        run, files = versions[max(versions)]
        assert run.content == "x"
        assert sorted(row for file in files for row in file.rows) == sorted(ROWS["x"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["overwrite", "look"])
@pytest.mark.parametrize(
    ("weak", "programs", "violation"),
    [
        ("plan", same_job, "version 1 has the rows"),
        ("log", two_jobs, "version 1 is another one than it was"),
    ],
)
def test_without_an_exclusive_create_the_explorer_finds_a_violation(weak, programs, violation, how):
    """Units of two plans get into one version, or a version is overwritten."""
    result = explore(programs(Rules(weak=frozenset([weak]), how=how)), stalls=1)
    assert result.violation.startswith(violation)
    assert result.trail


@pytest.mark.slow
@pytest.mark.parametrize("how", ["overwrite", "look"])
def test_version_is_complete_without_exclusive_receipts(how):
    """Publish reads the receipts once and only one commit can win, so any attempts that they name make a whole version."""
    assert explore(same_job(Rules(weak=frozenset(["receipt"]), how=how))).violation == ""


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(keep=False, lock_first=False), id="a driver that checks its files before its lock"),
        pytest.param(
            Rules(keep=False, unbroken=False), id="a vacuum that does not check whether it still holds the lock"
        ),
    ],
)
def test_vacuum_that_ignores_the_age_of_files_needs_both_lock_checks(rules):
    result = explore((driver("a", rules=rules), vacuum(rules)), stalls=1)
    assert result.violation == "version 1 names a file that is not there"


@pytest.mark.slow
def test_vacuum_that_keeps_young_files_is_safe_beside_an_orphaned_worker():
    """A crash and a stall together break a vacuum that ignores age, as docs/guarantees.md says."""
    programs = (driver("a"), vacuum(Rules(keep=False)))
    assert explore(programs, crashes=1, stalls=1).violation == "version 1 names a file that is not there"
    kept = (driver("a"), vacuum())
    assert explore(kept, crashes=1, stalls=1).violation == ""
