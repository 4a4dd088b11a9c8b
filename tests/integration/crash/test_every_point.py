"""A command is killed at every point where it touches the store, and run again: the table is as if it never died."""

from __future__ import annotations

import pytest

from tests.integration.crash.lab import Lab
from tests.integration.crash.points import all_points, distinct_points, one_of_a_kind
from tests.integration.crash.scenarios import SCENARIOS, clear
from tests.integration.crash.state import Tally, difference, state_of, unnamed


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_command_killed_at_any_point_and_repeated_ends_like_a_whole_one(lab, tally, every_point, name):
    here = lab(name)

    def attempt(caller, place, point):
        assert caller.run(here.do("command", place, point)).killed, "the command ended before it came there"
        if here.old is not None:  # readers are on one version or the other
            found = state_of(place.table)
            whole = here.whole if found.version == here.whole.version else here.old
            assert difference(found, whole).words == []
        here.must(caller, "command", place)
        clear(place)
        assert unnamed(place.table) == []

    points = all_points if every_point else distinct_points if name == "backfill" else one_of_a_kind
    here.each(points(here.calls), attempt, tally=tally)
    assert tally.wrong == []


def test_the_lab_detects_a_command_that_publishes_twice(zygote, tmp_path, tiny_model):
    """The comparison can fail: a row that is appended without asking is there twice after one of the deaths."""
    here = Lab(zygote, tmp_path, tiny_model, "refresh", command="careless")

    def attempt(caller, place, point):
        assert caller.run(here.do("careless", place, point)).killed
        here.must(caller, "careless", place)

    tally = Tally()
    commits = [call for call in here.calls if call.what == "commit"]
    here.each(distinct_points(commits), attempt, tally=tally)
    assert (tally.points, tally.lost, tally.doubled) == (4, 0, 1)
    assert any(line.startswith(f"after call {commits[1].number} ") and "careless" in line for line in tally.wrong)
