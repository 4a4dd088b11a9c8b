"""Separation of classes: every pair of texts of one class shall be nearer than every pair of two classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.train.losses.cached import NEVER, CachedLoss, Rows, parts, recomputed


class Separation(CachedLoss):
    """CoSENT over all pairs of a batch's texts, whose score is 1 in one class and 0 in two (2409.10173).

    log(1 + sum over pairs (a, b) of one class and (c, d) of two classes of exp((s_cd - s_ab) / t)), which is
    log(1 + [sum of exp(s_cd / t)] * [sum of exp(-s_ab / t)]). Texts are the queries and the passages of all ranks, with the
    class of their row; a pair of equal texts is left out. Without a pair of either kind it is 0. Term: `separation`.
    """

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the term of one width."""
        vectors = torch.cat(list(columns))
        labels = rows.labels.repeat(len(columns))
        texts = torch.cat(rows.known.columns)
        places = torch.arange(len(texts), device=texts.device)

        def part(begin: int, end: int) -> Tensor:
            scores = (vectors[begin:end] @ vectors.T) / self.settings.temperature
            pair = (places[begin:end, None] < places) & (texts[begin:end, None] != texts)
            same = labels[begin:end, None] == labels
            apart = scores.masked_fill(~pair | same, NEVER).flatten().logsumexp(0)
            together = (-scores).masked_fill(~pair | ~same, NEVER).flatten().logsumexp(0)
            return torch.stack([apart, together])

        sums = [recomputed(part, *each) for each in parts(0, len(texts), row_scores=len(texts))]
        exponent = torch.stack(sums).logsumexp(0).sum()
        return {"separation": torch.logaddexp(exponent, torch.zeros_like(exponent))}
