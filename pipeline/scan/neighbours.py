"""Exact neighbours among vectors in memory.

Used by the quality gate of a re-embedding, to compare the neighbours of two embedding specs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def nearest_rows(scores: npt.NDArray[np.float32], sample: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the rows nearest to each sampled row, without itself: int64 [sample, count], in no order.

    Args:
        scores: Scores of the sampled rows with all, float32 [sample, rows]; overwritten.
        sample: Numbers of the sampled rows.
        count: Neighbours of each; fewer than `rows`.
    """
    scores[np.arange(len(sample)), sample] = -np.inf
    nearest: npt.NDArray[np.int64] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return nearest
