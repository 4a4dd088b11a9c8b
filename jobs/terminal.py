"""Texts of a corpus on a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Return a text of a corpus with its control characters as escapes, so that a terminal obeys none of them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
