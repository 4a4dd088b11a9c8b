"""InfoNCE of pairs and of triplets in both directions, and its form for classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import Tensor
from torch.nn import functional

from pipeline.train.losses.cached import NEVER, CachedLoss, Rows, Settings, parts, recomputed

Mask = Callable[[int, int], Tensor]  # rows begin, end -> bool [rows, candidates]: which are no negatives


def positive_first(mask: Tensor, begin: int) -> Tensor:
    """Return the mask with each row's own positive, candidate number `begin + row`, taken out."""
    rows = torch.arange(len(mask), device=mask.device)
    mask[rows, begin + rows] = False
    return mask


def contrast(vectors: Tensor, candidates: Tensor, *, own: tuple[int, int], mask: Mask, temperature: float) -> Tensor:
    """Return the mean over rows i of -log(exp(s_ii / t) / sum over candidates j that are not masked of exp(s_ij / t)).

    Args:
        vectors: Vectors of length 1, [rows, width].
        candidates: [candidates, width]; number i is the positive of row i.
        own: First row of the mean, and the one after the last.
        mask: Candidates that are no negatives.
        temperature: t.
    """

    def part(begin: int, end: int) -> Tensor:
        scores = (vectors[begin:end] @ candidates.T) / temperature
        scores = scores.masked_fill(positive_first(mask(begin, end), begin), NEVER)
        return functional.cross_entropy(scores, torch.arange(begin, end, device=scores.device), reduction="sum")

    sums = [recomputed(part, *each) for each in parts(*own, row_scores=len(candidates))]
    return torch.stack(sums).sum() / (own[1] - own[0])


class InfoNCE(CachedLoss):
    """Contrast of each query with all passages, and of each passage with all queries.

    Stage pairs is L = NCE(q -> p) + NCE(p -> q), the sum over both directions (2307.11224; twice what
    `MultipleNegativesRankingLoss` returns, which takes the mean). Negatives of a row are candidates of all queries, and
    not of the reverse direction (2307.11224, 2310.19923). Stage triplets adds the third part of 2307.11224: the mean over rows and negatives of relu(s(q, n) - s(q, p) + margin).

    Terms: `nce`, `nce_reverse`, `margin`.

    Args:
        model: See `CachedLoss`.
        settings: See `CachedLoss`.
        distillation: See `CachedLoss`.
        margin: Margin of the third part; None: without it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: Settings,
        distillation: EmbedDistillLoss | None = None,
        *,
        margin: float | None = None,
    ) -> None:
        super().__init__(model, settings, distillation)
        self.margin = margin

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the terms of one width."""
        query, passage, *negatives = columns
        temperature, own = self.settings.temperature, rows.own
        terms = {
            "nce": contrast(
                query,
                torch.cat([passage, *negatives]),
                own=own,
                mask=lambda begin, end: self.no_negatives(rows, begin, end),
                temperature=temperature,
            ),
            "nce_reverse": contrast(
                passage,
                query,
                own=own,
                mask=lambda begin, end: self.no_reverse_negatives(rows, begin, end),
                temperature=temperature,
            ),
        }
        if self.margin is not None:
            here = slice(*own)
            negative = torch.stack([column[here] for column in negatives], dim=1)
            gap = torch.einsum("rd,rnd->rn", query[here], negative) - (query * passage)[here].sum(1, keepdim=True)
            text, *_ = rows.known.columns
            false = rows.known(text[here, None], torch.stack([c[here] for c in rows.known.columns[2:]], dim=1))
            terms["margin"] = functional.relu(gap + self.margin).masked_fill(false, 0).mean()
        return terms

    def no_negatives(self, rows: Rows, begin: int, end: int) -> Tensor:
        """Tell for rows and for all passages and negatives which are no negatives, bool [end - begin, candidates]."""
        query, *candidates = rows.known.columns
        return rows.known(query[begin:end, None], torch.cat(candidates))

    def no_reverse_negatives(self, rows: Rows, begin: int, end: int) -> Tensor:
        """Tell for passages of rows and for all queries which are no negatives, bool [end - begin, rows]."""
        query, passage, *_ = rows.known.columns
        return rows.known(query, passage[begin:end, None])


class Classification(InfoNCE):
    """InfoNCE of tuples (q, p, n_1 .. n_7), where q and p are of a class, and no n is (2409.10173).

    A passage or query of another row is a negative if its row has another class. The class of a row's negatives is not
    known, so they are negatives of this row only.
    """

    def no_negatives(self, rows: Rows, begin: int, end: int) -> Tensor:
        """Add the passages of the same class, and the negatives of other rows."""
        known = super().no_negatives(rows, begin, end)
        count = len(rows.known.columns[0])
        others = torch.ones(end - begin, count, dtype=torch.bool, device=known.device)
        others[torch.arange(end - begin), torch.arange(begin, end)] = False
        negatives = len(rows.known.columns) - 2
        return known | torch.cat([same_class(rows, begin, end), *[others] * negatives], dim=1)

    def no_reverse_negatives(self, rows: Rows, begin: int, end: int) -> Tensor:
        """Add the queries of the same class."""
        return super().no_reverse_negatives(rows, begin, end) | same_class(rows, begin, end)


def same_class(rows: Rows, begin: int, end: int) -> Tensor:
    """Tell which rows have the same class, bool [end - begin, rows]."""
    return rows.labels[begin:end, None] == rows.labels
