"""The protocol, in every order of its steps and with a crash at each: readers of a version always see the same whole set."""

from __future__ import annotations

import pytest

from tests.unit.ledger.protocol.explorer import alone, explore
from tests.unit.ledger.protocol.programs import ROWS, Rules, Stage, Who


def driver(name, content="x", *, cut=0, rules=None):
    return Stage("start", (Who(name, 0, content, cut, rules or Rules()),))


def vacuum(rules=None):
    return Stage("vacuum", (Who("v", 0, "", 0, rules or Rules()),))


def sisters(rules=None):
    """Two drivers of one job, which would cut the corpus differently."""
    return driver("a", rules=rules), driver("b", cut=1, rules=rules)


def rivals(rules=None):
    """Drivers of two jobs of one table."""
    return driver("a", rules=rules), driver("b", "y", cut=1, rules=rules)


# What is explored: programs, crashes, and how often one that lives may be taken for dead.
WORLDS = {
    "one driver that dies twice": ((driver("a"),), 2, 0),
    "two drivers of one job": (sisters(), 0, 0),
    "two jobs of one table": (rivals(), 1, 0),
    "two jobs, one of which seems dead": (rivals(), 0, 2),
    "a driver and a vacuum": ((driver("a"), vacuum()), 1, 2),
    "a driver and a vacuum that keeps nothing for its age": ((driver("a"), vacuum(Rules(keep=False))), 1, 0),
    "the same, one of which seems dead": ((driver("a"), vacuum(Rules(keep=False))), 0, 1),
}


@pytest.mark.parametrize("world", WORLDS)
def test_no_order_of_steps_changes_a_version_loses_a_file_or_a_row_or_doubles_one(world):
    programs, crashes, stalls = WORLDS[world]
    found = explore(programs, crashes=crashes, stalls=stalls)
    assert (found.violation, found.trail) == ("", ())
    assert "published" in found.outcomes
    assert found.states > 500


def test_two_drivers_of_one_job_one_of_which_dies_somewhere():
    """The largest world: two hundred thousand states."""
    found = explore(sisters(), crashes=1)
    assert (found.violation, found.trail) == ("", ())


@pytest.mark.parametrize("world", ["one driver that dies twice", "two drivers of one job", "two jobs of one table"])
def test_whatever_a_crash_leaves_the_same_command_ends_it_right(world):
    programs, crashes, stalls = WORLDS[world]
    stores = explore(programs, crashes=crashes, stalls=stalls).stores
    for store in stores:
        outcome, after = alone(driver("z"), store)
        assert outcome in ("published", "nothing to do")
        versions = {path[1]: value for path, value in after if path[0] == "log"}
        run, files = versions[max(versions)]
        assert run.content == "x"
        assert sorted(row for file in files for row in file.rows) == sorted(ROWS["x"])


@pytest.mark.parametrize("how", ["overwrite", "look"])
@pytest.mark.parametrize(
    ("weak", "programs", "violation"),
    [
        ("plan", sisters, "version 1 has the rows"),
        ("log", rivals, "version 1 is another one than it was"),
    ],
)
def test_without_an_exclusive_create_the_explorer_finds_what_breaks(weak, programs, violation, how):
    """Last writer wins, or a look before the write: two units of two plans in one version, and a version written over."""
    found = explore(programs(Rules(weak=frozenset([weak]), how=how)), stalls=1)
    assert found.violation.startswith(violation)
    assert found.trail


@pytest.mark.parametrize("how", ["overwrite", "look"])
def test_an_exclusive_receipt_saves_space_and_not_truth(how):
    """Publish reads the receipts once and only one commit can win: whichever attempt they name, the version is whole."""
    assert explore(sisters(Rules(weak=frozenset(["receipt"]), how=how))).violation == ""


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(keep=False, hold_first=False), id="a driver that looks at its files before its hold"),
        pytest.param(
            Rules(keep=False, unbroken=False), id="a vacuum that does not look whether it still holds the table"
        ),
    ],
)
def test_a_vacuum_that_keeps_nothing_for_its_age_needs_both_checks_of_the_hold(rules):
    found = explore((driver("a", rules=rules), vacuum(rules)), stalls=1)
    assert found.violation == "version 1 names a file that is not there"


def test_a_worker_that_outlives_its_driver_and_a_stalled_vacuum_are_what_the_age_of_files_is_for():
    """A crash, a stall and no regard to age together: what the guarantees name as not promised."""
    programs = (driver("a"), vacuum(Rules(keep=False)))
    assert explore(programs, crashes=1, stalls=1).violation == "version 1 names a file that is not there"
    kept = (driver("a"), vacuum())
    assert explore(kept, crashes=1, stalls=1).violation == ""
