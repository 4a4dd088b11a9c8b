"""Losses of a training: one for each source, a module that returns its terms by name. Imported in workers: it needs torch."""

from __future__ import annotations

from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import nn

from pipeline.job.training import Train, Training
from pipeline.train.data import Source, TrainingData
from pipeline.train.losses.cached import CachedLoss, Settings
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation

_WITH_LABELS: dict[str, type[CachedLoss]] = {
    "cosent": CoSENT,
    "pearson": Pearson,
    "classification": Classification,
    "separation": Separation,
}


def build_losses(model: SentenceTransformer, job: Training, data: TrainingData) -> dict[str, nn.Module]:
    """Return the loss of each source, by its name. The job fits the model and the data: its driver has checked that."""
    train = job.train
    dims = cast("int", model.get_embedding_dimension())
    settings = Settings(
        budget_tokens=train.budget_tokens,
        temperature=train.temperature,
        widths=tuple(sorted({dims, *train.matryoshka}, reverse=True)) if train.matryoshka else (),
        gor=train.gor,
        distill=train.distill,
    )
    distillations = {
        width: _distillation(model, width, train.seed)
        for width in sorted({source.teacher for source in data.sources} - {0})
    }
    return {
        source.name: _loss(source, train, model, settings, distillations.get(source.teacher)) for source in data.sources
    }


def _loss(
    source: Source,
    train: Train,
    model: SentenceTransformer,
    settings: Settings,
    distillation: EmbedDistillLoss | None,
) -> CachedLoss:
    if source.loss in _WITH_LABELS:
        return _WITH_LABELS[source.loss](model, settings, distillation)
    if train.stage == "joint":
        return Joint(model, settings, distillation, detach_dense=train.detach_dense)
    return InfoNCE(model, settings, distillation, margin=train.margin if train.stage == "triplets" else None)


def _distillation(model: SentenceTransformer, width: int, seed: int) -> EmbedDistillLoss:
    """Return the distance to vectors of a width; the projection to it is trained, and is the same on all ranks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EmbedDistillLoss(model, projection_dim=None if width == model.get_embedding_dimension() else width)
