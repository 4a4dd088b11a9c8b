"""Hashes that came twice: the same in memory and on the disk, and nothing stays there."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ledger.repeated_hashes import Repeats

NEAR_AN_EDGE = st.sampled_from([0, 1, (1 << 56) - 1, 1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
HASHES = NEAR_AN_EDGE | st.integers(0, (1 << 64) - 1) | st.integers(0, 20)


@settings(max_examples=50)
@given(st.lists(st.lists(HASHES, max_size=12), max_size=6), st.sampled_from([0, 64, 1 << 20]))
def test_what_came_twice_is_found_whatever_memory_holds(parts, limit_bytes):
    with Repeats(limit_bytes) as repeats:
        for part in parts:
            repeats.add(np.array(part, dtype=np.uint64))
        found = repeats.find().tolist()
    counts = Counter(one for part in parts for one in part)
    assert found == sorted(one for one, count in counts.items() if count > 1)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_nothing_stays_on_the_disk(tmp_path, monkeypatch, limit_bytes):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Repeats(limit_bytes) as repeats:
        repeats.add(np.arange(1_000, dtype=np.uint64) << np.uint64(50))
        there = [path for path in Path(tmp_path).rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert bool(there) == (limit_bytes == 0)
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]
