"""Text for sizes and durations: parsed from options, formatted for people."""

from __future__ import annotations

import re

from actors.errors import ConfigError

_SIZE_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_TIME_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def counted(number: int, what: str) -> str:
    """Return a number and what it counts, in the plural unless it is one."""
    if number == 1:
        return f"{number:,} {what}"
    return f"{number:,} {what[:-1]}ies" if what.endswith("ry") else f"{number:,} {what}s"


def format_bytes(size_bytes: float) -> str:
    """Return a size with a binary unit, as in `4.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, as in `12 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def parse_bytes(text: str | int, *, option: str) -> int:
    """Return the bytes of a size such as 128MiB, 1GB or 65536.

    Args:
        text: The value of the option.
        option: The option's name, for the message.

    Raises:
        ConfigError: the text is not a size above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(text).strip())
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _SIZE_UNITS or float(match.group(1)) == 0:
        raise ConfigError(f"{option} {text!r} must be a size above 0, as in 128MiB, 1GB or 65536")
    return int(float(match.group(1)) * _SIZE_UNITS[unit])


def parse_duration(text: str, *, option: str) -> float:
    """Return the seconds of a duration such as 90s, 15m, 1h or 7d.

    Args:
        text: The value of the option.
        option: The option's name, for the message.

    Raises:
        ConfigError: the text is not a duration above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    if match is None or float(match.group(1)) == 0:
        raise ConfigError(f"{option} {text!r} must be a number above 0 with s, m, h or d, as in 90s, 15m, 1h or 7d")
    return float(match.group(1)) * _TIME_UNITS_S[match.group(2)]
