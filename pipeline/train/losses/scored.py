"""Losses of pairs with a score: CoSENT and the negative correlation of Pearson."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, EmbedDistillLoss
from torch import Tensor

from pipeline.train.losses.cached import CachedLoss, Rows, Settings

_SAME = 1e-12  # variance below which numbers are equal but for their rounding


class CoSENT(CachedLoss):
    """log(1 + sum over pairs i, j with score_i > score_j of exp((cos_j - cos_i) / t)), over the rows of all ranks.

    Text matching of v3 (2409.10173) and v4; the formula and its code are `CoSENTLoss` of
    sentence-transformers. Without two different scores it is 0. Term: `cosent`.
    """

    def __init__(
        self, model: SentenceTransformer, settings: Settings, distillation: EmbedDistillLoss | None = None
    ) -> None:
        super().__init__(model, settings, distillation)
        self.formula = CoSENTLoss(model, scale=1 / settings.temperature)

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the term of one width."""
        return {"cosent": self.formula.compute_loss_from_embeddings(list(columns), rows.labels)}


class Pearson(CachedLoss):
    """The negative correlation of cosines and scores over the rows of all ranks (2402.17016).

    Equal scores, or equal cosines, have no correlation: the term is 0 then, without a gradient. Term: `pearson`.
    """

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the term of one width."""
        cosines = (columns[0] * columns[1]).sum(1)
        scores = rows.labels.to(cosines.dtype)
        cosines, scores = cosines - cosines.mean(), scores - scores.mean()
        deviations = torch.stack([cosines.square().mean(), scores.square().mean()])
        differ = deviations.min() > _SAME
        return {"pearson": -(cosines * scores).mean() / deviations.clamp_min(_SAME).prod().sqrt() * differ}
