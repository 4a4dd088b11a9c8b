"""A cron expression means the same to everyone who is handed it, or it is refused."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError
from pipeline.schedule.cron import Cron

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@pytest.mark.parametrize(
    ("expression", "text", "calendar"),
    [
        ("0 3 * * *", "0 3 * * *", ["*-*-* 03:00:00"]),
        ("*/15 * * * *", "*/15 * * * *", ["*-*-* *:00,15,30,45:00"]),
        ("0 3 * * mon-fri", "0 3 * * 1,2,3,4,5", ["Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00"]),
        ("0 3 * * 7", "0 3 * * 0", ["Sun *-*-* 03:00:00"]),
        ("0 3 * * 5-7", "0 3 * * 0,5,6", ["Sun,Fri,Sat *-*-* 03:00:00"]),
        ("5-50/10 */6 * JAN,jul *", "5-50/10 */6 * 1,7 *", ["*-01,07-* 00,06,12,18:05,15,25,35,45:00"]),
        ("30 4 1-7 * *", "30 4 1-7 * *", ["*-*-01..07 04:30:00"]),
        ("0 0 1,15 * 5", "0 0 1,15 * 5", ["*-*-01,15 00:00:00", "Fri *-*-* 00:00:00"]),
        ("0 0 */2 * *", "0 0 */2 * *", ["*-*-" + ",".join(f"{day:02d}" for day in range(1, 32, 2)) + " 00:00:00"]),
    ],
)
def test_an_expression_in_the_words_of_each(expression, text, calendar):
    found = Cron.parse(expression)
    assert (found.text, found.on_calendar()) == (text, calendar)
    assert Cron.parse(found.text) == found


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("@daily", "write '0 0 . . .'"),
        ("0 3 * *", "must have five fields, not 4"),
        ("0 0 3 * * *", "must have five fields, not 6"),
        ("61 * * * *", "bad minute"),
        ("*/0 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("0 0 * * FRI-MON", "bad day-of-week"),
        ("5/15 * * * *", "write a range, as in 5-59/15"),
        ("0 0 * * 0-0/1", "write a range"),
        ("0 0 * * MON-1/2", "write a range"),
        ("0 0 L * *", "'L' for the day of the month is not known to every cron"),
        ("0 0 * * 5#2", "'5#2' for the day of the week is not known"),
        ("0 0 * * 5L", "'5L'"),
        ("0 0 ? * *", "'.'"),
        ("0 0 */2 * 1", "Write the days out: 1,3,5"),
        ("0 0 1 * */2", "means both days for some"),
        ("0 3 * * *; rm", "five fields|not known"),
        ("a b c d e", "'A' for the minute"),
    ],
)
def test_what_has_no_meaning_or_several_is_refused(expression, message):
    with pytest.raises(ConfigError, match=message):
        Cron.parse(expression)


def matches(line: str, moment: datetime) -> bool:
    """systemd.time(7), as much of it as we write."""
    found = re.fullmatch(r"(?:([A-Z][a-z,A-Z]+) )?\*-(\S+)-(\S+) (\S+):(\S+):00", line)
    assert found is not None, line
    weekdays, *rest = found.groups()
    parts = (moment.month, moment.day, moment.hour, moment.minute)
    return (weekdays is None or DAYS[moment.weekday()] in weekdays.split(",")) and all(
        part == "*" or value in values_of(part) for part, value in zip(rest, parts, strict=True)
    )


def values_of(part: str) -> set[int]:
    ends = [piece.split("..") for piece in part.split(",")]
    return {value for end in ends for value in range(int(end[0]), int(end[-1]) + 1)}


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    span = st.tuples(one, one).map(lambda ends: f"{min(ends)}-{max(ends)}")
    step = st.builds(lambda base, step: f"{base}/{step}", st.one_of(st.just("*"), span), st.integers(1, 9))
    return st.lists(st.one_of(one.map(str), span, step, st.just("*")), min_size=1, max_size=3).map(
        lambda items: "*" if "*" in items else ",".join(items)
    )


@given(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 7), st.integers(0, 5 * 365 * 24 * 60))
def test_systemd_and_cron_agree_on_every_moment(minute, hour, day, month, weekday, offset):  # noqa: PLR0917
    expression = f"{minute} {hour} {day} {month} {weekday}"
    try:
        found = Cron.parse(expression)
    except ConfigError:
        return
    start = datetime(2024, 1, 1) + timedelta(minutes=offset)  # noqa: DTZ001  (wall-clock time, as both take it)
    upcoming = next(CronSim(expression, start))
    assert next(CronSim(found.text, start)) == upcoming
    lines = found.on_calendar()
    assert any(matches(line, upcoming) for line in lines)
    # Nothing of ours is due in between: at some moments of it, and at the minute before.
    for share in (0.1, 0.37, 0.5, 0.77, 0.99):
        moment = (start + (upcoming - start) * share).replace(second=0, microsecond=0)
        if start < moment < upcoming:
            assert not any(matches(line, moment) for line in lines)
    before = upcoming - timedelta(minutes=1)
    assert before <= start or not any(matches(line, before) for line in lines)
