"""Mask of false negatives by text: a pair of texts that the batch itself holds as a positive is never a negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KnownPairs:
    """Pairs of a query and a passage that are positives of any row of a batch.

    Three rows of FAQ data may have the same answer, or the same question; a mined negative may be the answer of
    another row with the same question. The sampler avoids most copies within a step, and this mask covers the rest, on
    all ranks. GISTEmbed (2402.16829) masks by the scores of a guide model; equal texts need none.

    Args:
        hashes: Hashes of the texts: query, passage, negatives; each int64 [rows].
    """

    def __init__(self, hashes: Sequence[Tensor]) -> None:
        texts, numbers = torch.unique(torch.stack(list(hashes)), return_inverse=True)
        self.columns: tuple[Tensor, ...] = tuple(numbers)
        """Number of the text of each row, column by column; equal texts have the same number."""
        self._texts = len(texts)
        self._pairs = torch.unique(self.columns[0] * self._texts + self.columns[1])

    def __call__(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Tell for numbers of texts, broadcast, whether the second is a positive of the first, or the same text."""
        pairs = queries * self._texts + passages
        nearest = torch.searchsorted(self._pairs, pairs).clamp_(max=len(self._pairs) - 1)
        known: Tensor = (self._pairs[nearest] == pairs) | (queries == passages)
        return known
