"""Repeated hashes: the same result in memory and on the disk, and no file is left there."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger.repeated_hashes import Repeats
from tests.examples import examples

BUCKET_EDGES = st.sampled_from([0, 1, (1 << 56) - 1, 1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
HASHES = BUCKET_EDGES | st.integers(0, (1 << 64) - 1) | st.integers(0, 20)


@examples(50)
@given(st.lists(st.lists(HASHES, max_size=12), max_size=6), st.sampled_from([0, 64, 1 << 20]))
def test_repeated_hashes_are_found_with_any_limit(parts, limit_bytes):
    with Repeats(limit_bytes) as repeats:
        for part in parts:
            repeats.add(np.array(part, dtype=np.uint64))
        found = repeats.find().tolist()
    counts = Counter(value for part in parts for value in part)
    assert found == sorted(value for value, count in counts.items() if count > 1)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_no_file_is_left_on_the_disk(tmp_path, monkeypatch, limit_bytes):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Repeats(limit_bytes) as repeats:
        repeats.add(np.arange(1_000, dtype=np.uint64) << np.uint64(50))
        files = [path for path in Path(tmp_path).rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert bool(files) == (limit_bytes == 0)
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]
