"""Losses of a training: one for each source, a module that returns its terms by name. Imported in workers: it needs torch."""

from __future__ import annotations

from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import nn

from actors.errors import ConfigError
from pipeline.job.training import Train, Training
from pipeline.train.data import Source, TrainingData
from pipeline.train.losses.cached import CachedLoss, Settings
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation

_WITHOUT_NEGATIVES: dict[str, type[CachedLoss]] = {"cosent": CoSENT, "pearson": Pearson, "separation": Separation}


def build_losses(model: SentenceTransformer, job: Training, data: TrainingData) -> dict[str, nn.Module]:
    """Return the loss of each source, by its name.

    Raises:
        ConfigError: `train.matryoshka` has a number above the model's dimensions, or a source's negatives do not fit its
            loss.
    """
    train = job.train
    dims = cast("int", model.get_embedding_dimension())
    if wide := next((width for width in train.matryoshka if width > dims), None):
        raise ConfigError(f"train.matryoshka has {wide}, and the model has {dims} dimensions; leave it out")
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
    if source.loss in _WITHOUT_NEGATIVES:
        if source.negatives:
            raise ConfigError(
                f"{source.name}: loss {source.loss} uses no negatives, and its rows have some; leave them out"
            )
        return _WITHOUT_NEGATIVES[source.loss](model, settings, distillation)
    if source.loss == "classification":
        return Classification(model, settings, distillation)
    if train.stage == "joint":
        return Joint(model, settings, distillation, detach_dense=train.detach_dense)
    if train.stage == "triplets" and not source.negatives:
        raise ConfigError(f"{source.name}: stage triplets needs negatives, and its rows have none; set stage: pairs")
    return InfoNCE(model, settings, distillation, margin=train.margin if train.stage == "triplets" else None)


def _distillation(model: SentenceTransformer, width: int, seed: int) -> EmbedDistillLoss:
    """Return the distance to vectors of a width; the projection to it is trained, and is the same on all ranks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EmbedDistillLoss(model, projection_dim=None if width == model.get_embedding_dimension() else width)
