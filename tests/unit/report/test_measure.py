"""Throughput of runs that were stopped, killed and resumed, or that had several drivers."""

from __future__ import annotations

import pytest

from pipeline.report.measure import seconds_of, throughput, time_text


def call(start_s, end_s):
    return {"units_started": time_text(start_s), "units_ended": None if end_s is None else time_text(end_s)}


def units(*ends, tokens=100):
    return [(end_s, 10, tokens, 1.0) for end_s in ends]


def spans(series):
    return [(seconds_of(part["start"]), part["seconds"]) for part in series]


def test_rows_are_spread_over_the_time_since_the_unit_before():
    (series,) = throughput(units(1004.0, 1006.0, 1008.0), [call(1000.0, 1009.0)])
    assert (series["step_s"], series["seconds"]) == (3.0, 9.0)
    assert series["tokens"] == [0, 200, 100]  # the first took a second
    assert sum(series["rows"]) == 30


@pytest.mark.parametrize(
    ("calls", "periods"),
    [
        ([call(1000.0, 1100.0)], [(1000.0, 100.0)]),
        ([call(1000.0, 1010.0), call(1050.0, 1100.0)], [(1000.0, 10.0), (1050.0, 50.0)]),  # stopped and resumed
        ([call(1000.0, None), call(1050.0, 1100.0)], [(1000.0, 7.0), (1050.0, 50.0)]),  # killed: until its last unit
        ([call(1000.0, 1090.0), call(1050.0, 1100.0)], [(1000.0, 100.0)]),  # two drivers at once
        ([call(1000.0, 1010.0), call(1050.0, None)], [(1000.0, 10.0), (1050.0, 49.0)]),
        ([], [(1002.0, 97.0)]),  # of an older release: from the start of the first unit
        ([{"units_started": None, "units_ended": None}], [(1002.0, 97.0)]),
    ],
)
def test_periods_are_the_times_in_which_calls_ran_units(calls, periods):
    ends = (1003.0, 1007.0, 1060.0, 1099.0)
    series = throughput(units(*ends), calls)
    assert spans(series) == periods
    assert sum(sum(part["tokens"]) for part in series) == 400
    assert all(count >= 0 for part in series for count in part["tokens"])


def test_a_unit_whose_worker_has_another_clock_counts_in_the_nearest_period():
    series = throughput(units(999.0, 1012.0, 1048.0), [call(1000.0, 1010.0), call(1050.0, 1060.0)])
    assert [sum(part["rows"]) for part in series] == [20, 10]


def test_units_without_a_time_are_left_out():
    assert throughput(units(0.0, 0.0), []) == []
    (series,) = throughput(units(0.0, 1001.0), [])
    assert sum(series["rows"]) == 10


def test_many_units_make_at_most_sixty_bins():
    (series,) = throughput(units(*(1000.0 + number for number in range(1, 1001))), [call(1000.0, 2000.0)])
    assert len(series["rows"]) == 60
    assert sum(series["rows"]) == 10_000
