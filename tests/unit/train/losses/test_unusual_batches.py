"""Losses of batches that teach nothing, or that are broken: finite where there is an answer, NaN where there is none."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from pipeline.train.losses.cached import CachedLoss, Settings
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation
from tests.toys.losses import columns, model, texts, vectors

SMALL = Settings(budget_tokens=9)
EVERY_LOSS = {
    "pairs": (lambda of: InfoNCE(of, SMALL), 2, None),
    "triplets": (lambda of: InfoNCE(of, SMALL, margin=0.05), 3, None),
    "classification": (lambda of: Classification(of, SMALL), 3, torch.tensor([0, 1, 0, 1, 2, 2, 1])),
    "cosent": (lambda of: CoSENT(of, SMALL), 2, torch.linspace(0, 1, 7)),
    "pearson": (lambda of: Pearson(of, SMALL), 2, torch.linspace(0, 1, 7)),
    "separation": (lambda of: Separation(of, SMALL), 2, torch.tensor([0, 1, 0, 1, 2, 2, 1])),
    "joint": (lambda of: Joint(of, SMALL), 3, None),
}
each_loss = pytest.mark.parametrize(("make", "count", "labels"), EVERY_LOSS.values(), ids=EVERY_LOSS)


def run(loss: CachedLoss, features, labels=None) -> tuple[float, float]:
    """The loss, and the largest number of its gradient."""
    loss.model.zero_grad()
    total = torch.stack(list(loss(features, labels).values())).sum()
    total.backward()
    return total.item(), loss.model[0].table.weight.grad.abs().max().item()


@each_loss
def test_a_batch_of_one_text_in_all_places_has_no_gradient(make, count, labels):
    value, gradient = run(make(model(late=True)), [texts(*[3] * 7) for _ in range(count)], labels)
    assert value == pytest.approx(log(1 + 21) if make is EVERY_LOSS["cosent"][0] else 0, abs=1e-6)
    assert gradient < 1e-6


@each_loss
def test_a_batch_of_one_row_is_finite(make, count, labels):
    value, gradient = run(make(model(late=True)), columns(count, rows=1), None if labels is None else labels[:1])
    assert value < 10
    assert gradient < 100


@each_loss
def test_a_vector_that_is_not_finite_is_not_hidden(make, count, labels):
    of: Any = model(late=True)
    with torch.no_grad():
        of[0].table.weight[int(columns(count)[1]["input_ids"][4, 0])] = torch.nan
    assert torch.isnan(torch.tensor(run(make(of), columns(count), labels)[0]))


@each_loss
def test_a_step_that_is_one_minibatch_is_embedded_once(make, count, labels):
    features, results, calls = columns(count), [], []
    tokens = sum(int(column["attention_mask"].sum()) for column in features)
    for budget_tokens in (tokens, tokens - 1):
        of: Any = model(late=True)
        loss = make(of)
        loss.mini_batch_num_tokens = budget_tokens
        of[0].register_forward_hook(lambda *_: calls.append(budget_tokens))  # noqa: B023
        results.append((*run(loss, features, labels), of[0].table.weight.grad))
    (value, largest, gradient), (cached_value, _, cached_gradient) = results
    assert [calls.count(tokens), calls.count(tokens - 1)] == [count, 2 * count]
    assert value == cached_value
    assert largest > 0
    torch.testing.assert_close(gradient, cached_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [CoSENT, Pearson])
def test_equal_scores_teach_nothing(make):
    assert run(make(model(), SMALL), columns(2), torch.full((7,), 0.5)) == (0, 0)


def test_one_class_separates_nothing():
    assert run(Separation(model(), SMALL), columns(2), torch.zeros(7, dtype=torch.int64)) == (0, 0)


def test_one_class_leaves_the_own_negatives():
    own, _ = run(Classification(model(), SMALL), columns(3), torch.zeros(7, dtype=torch.int64))
    alone = [
        run(InfoNCE(model(), SMALL), [{k: v[i : i + 1] for k, v in c.items()} for c in columns(3)]) for i in range(7)
    ]
    assert own == pytest.approx(sum(value for value, _ in alone) / 7)
    assert run(Classification(model(), SMALL), columns(2), torch.zeros(7, dtype=torch.int64)) == (0, 0)


def test_negatives_that_equal_the_positive_are_left_out():
    of = model()
    query, passage = columns(2)
    terms = InfoNCE(of, SMALL, margin=0.05)([query, passage, passage])
    q, p = vectors(of, [query, passage])
    scores = q @ p.T / 0.05
    copies = scores.masked_fill(torch.eye(7, dtype=torch.bool), -torch.inf)
    expected = (torch.cat([scores, copies], dim=1).logsumexp(1) - scores.diagonal()).mean()
    assert (terms["nce"].item(), terms["margin"].item()) == (pytest.approx(expected.item()), 0)


def test_a_model_in_bfloat16_has_a_loss_in_float32():
    loss = InfoNCE(model(torch.bfloat16), SMALL)
    terms = loss(columns(2))
    assert {value.dtype for value in terms.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        again = loss(columns(2))
    assert torch.equal(torch.stack(list(terms.values())), torch.stack(list(again.values())))


def test_an_evaluation_has_the_same_terms_without_a_gradient():
    loss = InfoNCE(model(), SMALL, margin=0.05)
    trained = loss(columns(3))
    with torch.no_grad():
        evaluated = loss(columns(3))
    assert evaluated == trained
    assert not any(value.requires_grad for value in evaluated.values())
