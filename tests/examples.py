"""Numbers of random examples that follow the profile of Hypothesis (tests/conftest.py)."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100  # examples of a test that states no number, in each profile but `quick`


def examples(count: int) -> settings:
    """Settings of a test with `count` examples. The profile `quick` tries the same share of them as of all others."""
    return settings(max_examples=max(1, count * settings().max_examples // _USUAL))
