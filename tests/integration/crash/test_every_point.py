"""A command is killed at every point where it touches the store, and run again: the table is as if it never died."""

from __future__ import annotations

import pytest

from tests.integration.crash.scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_point_and_run_again_it_ends_like_one_that_never_was(lab, name):
    here = lab(name)

    def attempt(caller, place, point):
        assert caller.run(here.command("command", place, point)).killed, "the run ended before it came there"
        here.must(caller, here.command("command", place))

    here.each(here.points(), attempt)
