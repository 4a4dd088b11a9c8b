"""A cron expression that means the same everywhere, and its translation for systemd.

Used by the manifests. Cron is a family, not a language: cron daemons, Kubernetes and systemd differ at the edges. What
they read in different ways is refused here, with the way to say it that all of them agree on; what is left is written
in numbers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from actors.errors import ConfigError

_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
_RANGES = (range(60), range(24), range(1, 32), range(1, 13), range(7))
_NAMES = "SUN|MON|TUE|WED|THU|FRI|SAT|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
_ITEM = re.compile(rf"(\*|(?P<start>\d+|{_NAMES})-(?P<end>\d+|{_NAMES})|(?P<one>\d+|{_NAMES}))(?P<step>/\d+)?")
_SHORT = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True, slots=True)
class Cron:
    """When to run, to the minute. Sunday is 0.

    Attributes:
        text: Five fields, in numbers.
        values: What each field matches, in the order of the fields.
        either_day: Both days are restricted, and one of them is enough: what every cron makes of it.
    """

    text: str
    values: tuple[frozenset[int], ...]
    either_day: bool

    @classmethod
    def parse(cls, expression: str) -> Cron:
        """An expression of five fields.

        Raises:
            ConfigError: it is not one, matches no date, or means different things in different places.
        """
        fields = expression.upper().split()
        if len(fields) != 5:
            short = _SHORT.get(expression.strip().lower())
            way_out = f"write {short!r}" if short else "as in '0 3 * * *': minute, hour, day, month, day of the week"
            raise ConfigError(f"--cron {expression!r} must have five fields, not {len(fields)}; {way_out}")
        for name, field in zip(_FIELDS, fields, strict=True):
            for item in field.split(","):
                _check(expression, name, item)
        try:
            found = CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC))
            next(found)
        except CronSimError as error:
            raise ConfigError(
                f"--cron {expression!r}: {str(error).lower()}; minutes are 0 to 59, hours 0 to 23, days 1 to 31, months 1 to 12, "
                f"days of the week 0 to 7, as in '0 3 * * *'"
            ) from None
        except StopIteration:
            raise ConfigError(f"--cron {expression!r} names a date that no year has") from None
        parsed = (found.minutes, found.hours, found.days, found.months, {_weekday(day) for day in found.weekdays})
        values = tuple(frozenset(field) for field in parsed)
        day, weekday = fields[2], fields[4]
        if "*" not in (day, weekday) and "*" in day + weekday:
            raise ConfigError(
                f"--cron {expression!r}: with days of the week and of the month, '*/n' means both days for some crons and "
                f"either for others. Write the days out: {','.join(map(str, sorted(values[2])))}"
            )
        text = " ".join(_normal(*field) for field in zip(fields, values, _RANGES, strict=True))
        return cls(text, values, either_day=day != "*" and weekday != "*")

    def on_calendar(self) -> list[str]:
        """The same for systemd: one `OnCalendar=` or two, either of which is enough."""
        minutes, hours, days, months = (
            _listed(values, every) for values, every in zip(self.values[:4], _RANGES[:4], strict=True)
        )
        time, weekdays = f"{hours}:{minutes}:00", _weekdays(self.values[4])
        if self.either_day:
            return [f"*-{months}-{days} {time}", f"{weekdays} *-{months}-* {time}".strip()]
        return [f"{weekdays} *-{months}-{days} {time}".strip()]


def _check(expression: str, name: str, item: str) -> None:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ConfigError(
            f"--cron {expression!r}: {item!r} for the {name} is not known to every cron; write numbers, as in '5', '1-5', "
            f"'1,15', '*' or '*/15', or names, as in 'MON-FRI'"
        )
    start, end = match.group("one", "one") if match.group("one") else match.group("start", "end")
    if match.group("step") and start is not None and _number(start) == _number(end):
        raise ConfigError(
            f"--cron {expression!r}: {item!r} starts at one {name} and does not say where it ends; write a range, as in "
            f"5-59/15"
        )


def _number(value: str) -> int:
    names = _NAMES.split("|")
    return int(value) if value.isdigit() else (names.index(value) if value in names[:7] else names.index(value) - 6)


def _weekday(day: object) -> int:
    return day % 7 if isinstance(day, int) else 0  # no tuples: `_check` refuses what makes them


def _normal(field: str, values: frozenset[int], every: range) -> str:
    """The field as it is, unless it holds names, or Sunday as 7, which Kubernetes does not know."""
    if re.search(r"[A-Z]", field) or (every == _RANGES[4] and re.search(r"(?<!/)7", field)):
        return ",".join(map(str, sorted(values)))
    return field


def _listed(values: Iterable[int], every: range) -> str:
    found = sorted(values)
    if found == list(every):
        return "*"
    return ",".join(
        f"{first:02d}" if first == last else f"{first:02d}..{last:02d}" for first, last in _stretches(found)
    )


def _weekdays(values: Iterable[int]) -> str:
    found = sorted(values)
    if found == list(_RANGES[4]):
        return ""
    return ",".join(_WEEKDAYS[day] for day in found)


def _stretches(found: list[int]) -> Iterable[tuple[int, int]]:
    """Runs of three or more neighbours as their ends; others alone."""
    start = 0
    for end in range(1, len(found) + 1):
        if end == len(found) or found[end] != found[end - 1] + 1:
            if end - start >= 3:
                yield found[start], found[end - 1]
            else:
                yield from ((value, value) for value in found[start:end])
            start = end
