"""The loss of each source of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from pipeline.job.training import parse_training
from pipeline.train.data import Source, TrainingData
from pipeline.train.losses import build_losses
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation
from tests.toys.losses import columns, model

LABELS = {"classification": torch.arange(7) % 3, "separation": torch.arange(7) % 3}
SCORES = torch.linspace(0, 1, 7)


def source(name: str, loss: str = "infonce", **settings: Any) -> Source:
    return Source(name=name, folder=Path(), weight=1, loss=loss, rows=7, **{"negatives": 0, **settings})


def build(*sources: Source, of: SentenceTransformer | None = None, **train: Any) -> dict[str, Any]:
    data = {"uri": "p", "teacher": "t"} if train.get("distill") else {"uri": "p"}
    job = parse_training({"train": {"model": "m"} | train, "data": [data], "out": {"uri": "o"}})
    return build_losses(of or model(), job, TrainingData(sources, Path(), "", {}))


@pytest.mark.parametrize(
    ("loss", "stage", "kind"),
    [
        ("infonce", "pairs", InfoNCE),
        ("infonce", "joint", Joint),
        ("cosent", "scored", CoSENT),
        ("cosent", "pairs", CoSENT),
        ("pearson", "scored", Pearson),
        ("classification", "triplets", Classification),
        ("separation", "pairs", Separation),
    ],
)
def test_a_source_has_the_loss_that_it_names(loss, stage, kind):
    assert type(build(source("a", loss), stage=stage)["a"]) is kind


def test_the_margin_is_of_triplets_only():
    losses = [build(source("a", negatives=2), stage=stage, margin=0.2)["a"] for stage in ("pairs", "triplets")]
    assert [loss.margin for loss in losses] == [None, 0.2]
    assert [list(loss(columns(4))) for loss in losses] == [["nce", "nce_reverse"], ["nce", "nce_reverse", "margin"]]


def test_settings_of_the_job_reach_the_loss():
    loss = build(
        source("a"), stage="joint", temperature=0.02, budget_tokens=99, gor=0.5, matryoshka=[4, 8], detach_dense=True
    )["a"]
    assert (loss.mini_batch_num_tokens, loss.settings.temperature, loss.detach_dense) == (99, 0.02, True)
    assert loss.settings.widths == (16, 8, 4)  # all dimensions, too


def test_every_loss_trains_with_every_option_and_names_its_terms():
    of = model(torch.float32, late=True)
    kinds = ("infonce", "cosent", "pearson", "classification", "separation")
    losses = build(
        *(source(kind, kind, teacher=5) for kind in kinds),
        of=of,
        gor=0.1,
        distill=2.0,
        matryoshka=8,
        budget_tokens=9,
    ) | build(source("joint", teacher=5), of=of, stage="joint", gor=0.1, distill=2.0, matryoshka=8)
    features = [column | {"teacher": torch.ones(7, 5)} for column in columns(2)]
    names = {}
    for name, loss in losses.items():
        terms = loss(features, LABELS.get(name, SCORES))
        torch.stack(list(terms.values())).sum().backward()
        names[name] = list(terms)
    assert names["infonce"] == [*("nce_16", "nce_reverse_16", "gor_16", "nce_8", "nce_reverse_8", "gor_8"), "distill"]
    assert names["joint"] == ["nce_16", "gor_16", "nce_8", "gor_8", "nce_late", "kl", "distill"]
    assert names["pearson"] == ["pearson_16", "gor_16", "pearson_8", "gor_8", "distill"]
    assert all(torch.isfinite(each.grad).all() for loss in losses.values() for each in loss.parameters())


def test_sources_share_a_projection_whose_first_values_are_of_the_seed():
    first = build(source("a", teacher=5), source("b", teacher=5), source("c"), distill=1, seed=3)
    again = build(source("a", teacher=5), distill=1, seed=3)
    other = build(source("a", teacher=5), distill=1, seed=4)
    assert first["a"].distillation is first["b"].distillation
    assert first["c"].distillation is None
    of = lambda losses: losses["a"].distillation.projection.weight  # noqa: E731
    assert torch.equal(of(first), of(again))
    assert not torch.equal(of(first), of(other))
    assert build(source("a", teacher=16), distill=1)["a"].distillation.projection is None


def test_building_a_loss_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    of = model()
    torch.manual_seed(5)
    build(source("a", teacher=5), of=of, distill=1)
    assert torch.equal(torch.rand(3), expected)
