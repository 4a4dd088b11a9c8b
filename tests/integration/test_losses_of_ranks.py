"""Losses on two ranks with half of the rows each are those of one rank with all of them: values, and averaged gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.train.losses.cached import CachedLoss, Settings
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation
from tests.toys.losses import columns, model, texts
from tests.toys.ranks import on_two_ranks

ROWS = 8
SETTINGS = Settings(budget_tokens=9, temperature=0.1, widths=(16, 4), gor=0.3, distill=0.7)
CLASSES = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2])
SCORES = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.0, 1.0, 0.7, 0.2])


def batch() -> list[dict[str, Tensor]]:
    """Three columns; a question and an answer are in the rows of both ranks, and one column is shorter on one of them."""
    query, passage, _ = columns(3, ROWS)
    features = [query, passage, texts(*[100] * 4, 101, 102, 103, 104)]
    query["text_hash"][6] = query["text_hash"][1]
    passage["text_hash"][5] = passage["text_hash"][0]
    for column in features[:2]:
        column["teacher"] = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1))
    return features


def cut(column: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some rows, as wide as the longest of them: ranks differ."""
    found = {key: value[rows] for key, value in column.items()}
    width = int(found["attention_mask"].sum(1).max())
    return found | {key: found[key][:, :width] for key in ("input_ids", "attention_mask")}


def losses() -> dict[str, tuple[CachedLoss, int, Tensor | None]]:
    """Each loss, the columns and the labels that it takes. The first has the projection of a teacher."""
    of = model()
    teacher = EmbedDistillLoss(of, projection_dim=5).double()
    return {
        "triplets": (InfoNCE(of, SETTINGS, teacher, margin=0.3), 3, None),
        "classification": (Classification(of, SETTINGS), 3, CLASSES),
        "cosent": (CoSENT(of, SETTINGS), 2, SCORES),
        "pearson": (Pearson(of, SETTINGS), 2, SCORES),
        "separation": (Separation(of, SETTINGS), 2, CLASSES),
        "joint": (Joint(model(late=True), SETTINGS), 3, None),
    }


def compute(rows: slice, wrap: Callable[[Any], Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the terms and the gradients of all losses on some rows."""
    values: dict[str, float] = {}
    gradients: dict[str, Tensor] = {}
    for name, (loss, count, labels) in losses().items():
        of = loss.model
        loss.model = wrap(of)
        features = [cut(column, rows) for column in batch()[:count]]
        terms = loss(features, None if labels is None else labels[rows])
        torch.stack(list(terms.values())).sum().backward()
        values |= {f"{name} {key}": value.item() for key, value in terms.items()}
        for key, each in loss.named_parameters():
            if each.grad is not None:
                gradients[f"{name} {key.replace('model.module.', 'model.')}"] = each.grad
        of.zero_grad()
    return values, gradients


def rank(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    half = ROWS // 2
    found = compute(
        slice(number * half, (number + 1) * half),
        DistributedDataParallel,
    )
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    on_two_ranks(rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    alone = compute(slice(0, ROWS), lambda of: of)
    mean = {key: (value + second[0][key]) / 2 for key, value in first[0].items()}
    assert mean == pytest.approx(alone[0], rel=1e-6)
    for of_rank in (first, second):
        torch.testing.assert_close(of_rank[1], alone[1], rtol=1e-5, atol=1e-7)  # late scores are float32
