"""Each loss against its formula, written as loops over rows, in float64: the terms, and the gradients without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    EmbedDistillLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
)
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.train.losses import cached
from pipeline.train.losses.cached import CachedLoss, Settings
from pipeline.train.losses.infonce import Classification, InfoNCE
from pipeline.train.losses.joint import Joint
from pipeline.train.losses.scored import CoSENT, Pearson
from pipeline.train.losses.separation import Separation
from tests.toys.losses import WIDTH, columns, model, texts, vectors

SMALL = Settings(budget_tokens=9, temperature=0.1)  # two or three texts a mini-batch
CLASSES = torch.tensor([0, 1, 0, 2, 1, 0, 3])
SCORES = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.0, 1.0, 0.7])
Column = dict[str, Tensor]


def run(loss: CachedLoss, features: Sequence[Column], labels: Tensor | None = None) -> tuple[dict[str, float], Tensor]:
    """The terms and the gradient of the table of words."""
    loss.model.zero_grad()
    terms = loss(features, labels)
    torch.stack(list(terms.values())).sum().backward()
    return {name: value.item() for name, value in terms.items()}, gradient(loss)


def gradient(loss: Any) -> Tensor:
    grad: Tensor = loss.model[0].table.weight.grad
    return grad.clone()


def check(
    loss: CachedLoss,
    features: Sequence[Column],
    formula: Callable[[list[Tensor]], dict[str, Tensor]],
    labels: Tensor | None = None,
    tolerance: float = 1e-12,
) -> None:
    terms, cached_gradient = run(loss, features, labels)
    loss.model.zero_grad()
    expected = formula(vectors(loss.model, features))
    torch.stack([value.double() for value in expected.values()]).sum().backward()
    assert terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=tolerance, abs=1e-12)
    torch.testing.assert_close(cached_gradient, gradient(loss), rtol=tolerance * 100, atol=tolerance)


def nce(rows: Tensor, candidates: Tensor, allowed: Callable[[int, int], bool], t: float = 0.1) -> Tensor:
    """Mean of -log(exp(s_ii / t) / sum of exp(s_ij / t) over j that are allowed, and i)."""
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        scores = [(row @ c / t).exp() for j, c in enumerate(candidates) if j == i or allowed(i, j)]
        total = total - ((row @ candidates[i] / t).exp() / torch.stack(scores).sum()).log()
    return total / len(rows)


def everything(i: int, j: int) -> bool:
    return True


def test_pairs_sum_both_directions():
    check(
        InfoNCE(model(), SMALL),
        columns(2),
        lambda v: {"nce": nce(v[0], v[1], everything), "nce_reverse": nce(v[1], v[0], everything)},
    )


@pytest.mark.parametrize("count", [2, 4])
def test_without_repeated_texts_infonce_is_twice_the_loss_of_sentence_transformers(count):
    ours = InfoNCE(model(), SMALL)
    theirs = CachedMultipleNegativesRankingLoss(
        ours.model,
        scale=10,
        mini_batch_num_tokens=9,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    terms, grad = run(ours, columns(count))
    ours.model.zero_grad()
    value = 2 * theirs(columns(count), None)
    value.backward()
    assert sum(terms.values()) == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(grad, gradient(ours), rtol=1e-10, atol=1e-12)


def test_triplets_add_negatives_and_the_margin():
    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        query, passage, *negatives = v
        gaps = [
            (q @ n - q @ p + 0.3).relu() for column in negatives for q, p, n in zip(query, passage, column, strict=True)
        ]
        assert 0 < sum(gap.item() == 0 for gap in gaps) < len(gaps)  # both sides of the bend
        return {
            "nce": nce(query, torch.cat(v[1:]), everything),
            "nce_reverse": nce(passage, query, everything),
            "margin": torch.stack(gaps).mean(),
        }

    check(InfoNCE(model(), SMALL, margin=0.3), columns(4), formula)


def test_texts_that_are_known_positives_are_no_negatives():
    query = texts(1, 2, 1, 3, 4)  # rows 0 and 2 ask the same
    passage = texts(11, 12, 13, 12, 1)  # rows 1 and 3 have the same answer, row 4's is the question of row 0
    mined = texts(13, 15, 16, 12, 17)  # of row 0: the answer of row 2; of row 3: its own answer
    known = {(1, 11), (2, 12), (1, 13), (3, 12), (4, 1)}
    hashes = [[int(h) // 7_777_777_777 for h in column["text_hash"]] for column in (query, passage, mined)]

    def negative_of(question: int, answer: int) -> bool:
        return (question, answer) not in known and question != answer

    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        candidates = hashes[1] + hashes[2]
        margins = [
            (q @ n - q @ p + 0.3).relu() * negative_of(a, c)
            for q, p, n, a, c in zip(*v, hashes[0], hashes[2], strict=True)
        ]
        return {
            "nce": nce(v[0], torch.cat(v[1:]), lambda i, j: negative_of(hashes[0][i], candidates[j])),
            "nce_reverse": nce(v[1], v[0], lambda i, j: negative_of(hashes[0][j], hashes[1][i])),
            "margin": torch.stack(margins).mean(),
        }

    check(InfoNCE(model(), SMALL, margin=0.3), [query, passage, mined], formula)


def test_classification_masks_the_same_class_and_the_negatives_of_others():
    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        def allowed(i: int, j: int) -> bool:
            return bool(CLASSES[i] != CLASSES[j]) if j < 7 else j % 7 == i

        return {"nce": nce(v[0], torch.cat(v[1:]), allowed), "nce_reverse": nce(v[1], v[0], allowed)}

    check(Classification(model(), SMALL), columns(4), formula, CLASSES)


def test_separation_compares_all_pairs_of_one_class_with_all_of_two():
    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        rows, classes = torch.cat(v), CLASSES.tolist() * 2
        pairs = [(i, j) for j in range(14) for i in range(j)]
        same = [rows[i] @ rows[j] for i, j in pairs if classes[i] == classes[j]]
        apart = [rows[i] @ rows[j] for i, j in pairs if classes[i] != classes[j]]
        return {"separation": torch.stack([((b - a) / 0.1).exp() for a in same for b in apart]).sum().log1p()}

    check(Separation(model(), SMALL), columns(2), formula, CLASSES)


def test_cosent_compares_pairs_with_different_scores():
    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        cosines = (v[0] * v[1]).sum(1)
        higher = [(i, j) for i in range(7) for j in range(7) if SCORES[i] > SCORES[j]]
        return {"cosent": torch.stack([((cosines[j] - cosines[i]) / 0.1).exp() for i, j in higher]).sum().log1p()}

    check(CoSENT(model(), SMALL), columns(2), formula, SCORES)


def test_pearson_is_the_negative_correlation():
    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        return {"pearson": -torch.corrcoef(torch.stack([(v[0] * v[1]).sum(1), SCORES.double()]))[0, 1]}

    check(Pearson(model(), SMALL), columns(2), formula, SCORES)


@pytest.mark.parametrize("detach_dense", [False, True])
def test_joint_adds_late_interaction_and_the_divergence_of_both(detach_dense):
    loss = Joint(model(late=True), SMALL, detach_dense=detach_dense)
    features = columns(3)

    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        query, *others = (loss.model(dict(column)) for column in features)
        dense = v[0] @ torch.cat(v[1:]).T
        late = torch.stack(
            [
                torch.stack(
                    [
                        (tokens[mask.bool()] @ passage[there.bool()].T).max(1).values.mean()
                        for other in others
                        for passage, there in zip(other["token_embeddings"], other["attention_mask"], strict=True)
                    ]
                )
                for tokens, mask in zip(query["token_embeddings"], query["attention_mask"], strict=True)
            ]
        )
        p, q = ((scores / 0.1).softmax(1) for scores in (dense, late))
        p = p.detach() if detach_dense else p
        return {
            "nce": nce(v[0], torch.cat(v[1:]), everything),
            "nce_late": -(q.diagonal().log()).mean(),
            "kl": (p * (p / q).log()).sum(1).mean(),
        }

    check(loss, features, formula, tolerance=1e-6)  # late scores of sentence-transformers are float32
    projector = loss.model[0].projector.weight
    of_formula = projector.grad
    run(loss, features)
    torch.testing.assert_close(projector.grad, of_formula, rtol=1e-4, atol=1e-6)


def test_matryoshka_is_the_sum_over_slices_of_length_1():
    loss = InfoNCE(model(), Settings(budget_tokens=9, temperature=0.1, widths=(WIDTH, 8, 4)))

    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for width in (WIDTH, 8, 4):
            q, p = (normalize(each[:, :width], dim=1) for each in v)
            terms |= {f"nce_{width}": nce(q, p, everything), f"nce_reverse_{width}": nce(p, q, everything)}
        return terms

    check(loss, columns(2), formula)

    inner = CachedMultipleNegativesRankingLoss(
        loss.model,
        scale=10,
        mini_batch_num_tokens=9,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    theirs = MatryoshkaLoss(loss.model, inner, [WIDTH, 8, 4])(columns(2), None)
    assert sum(run(loss, columns(2))[0].values()) == pytest.approx(2 * theirs.item(), rel=1e-12)


def test_gor_is_that_of_sentence_transformers_on_queries_and_passages():
    loss = Pearson(model(), Settings(budget_tokens=9, gor=0.5))
    theirs = GlobalOrthogonalRegularizationLoss(loss.model, mean_weight=0, aggregation="sum")

    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        pearson = -torch.corrcoef(torch.stack([(v[0] * v[1]).sum(1), SCORES.double()]))[0, 1]
        gor = theirs.compute_loss_from_embeddings(v)["gor_second_moment"]
        assert gor > 0
        return {"pearson": pearson, "gor": 0.5 * gor}

    check(loss, columns(2), formula, SCORES)


@pytest.mark.parametrize("teacher_width", [WIDTH, 5])
def test_distillation_is_the_mean_distance_to_the_vectors_of_a_teacher(teacher_width):
    of = model()
    distillation = EmbedDistillLoss(of, projection_dim=None if teacher_width == WIDTH else teacher_width).double()
    loss = InfoNCE(of, Settings(budget_tokens=9, temperature=0.1, distill=3.0), distillation)
    features = columns(3)
    for number, column in enumerate(features[:2]):
        column["teacher"] = torch.randn(7, teacher_width, generator=torch.Generator().manual_seed(number))

    def formula(v: list[Tensor]) -> dict[str, Tensor]:
        apart = []
        for column, rows in zip(features[:2], v[:2], strict=True):
            student = rows if distillation.projection is None else distillation.projection(rows)
            teacher = column["teacher"].double()
            cosines = (student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))
            apart.append(1 - cosines)
        negatives, reverse = nce(v[0], torch.cat(v[1:]), everything), nce(v[1], v[0], everything)
        return {"nce": negatives, "nce_reverse": reverse, "distill": 3 * torch.stack(apart).mean()}

    check(loss, features, formula)
    if distillation.projection is not None:
        of_formula = distillation.projection.weight.grad
        assert of_formula is not None
        distillation.zero_grad()
        (sum(loss(features).values()) / 4).backward()  # as the trainer divides by its steps of accumulation
        torch.testing.assert_close(distillation.projection.weight.grad, of_formula / 8)  # it held both runs of `check`


def test_scores_in_parts_change_nothing(monkeypatch):
    losses = [
        (InfoNCE(model(), SMALL, margin=0.3), columns(4), None),
        (Separation(model(), SMALL), columns(2), CLASSES),
        (Joint(model(late=True), SMALL), columns(3), None),
    ]
    before = [run(*each) for each in losses]
    monkeypatch.setattr(cached, "PART", 50)
    assert list(cached.parts(0, 7, row_scores=21)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    for each, (terms, grad) in zip(losses, before, strict=True):
        again, grad_again = run(*each)
        assert again == pytest.approx(terms, rel=1e-6)
        torch.testing.assert_close(grad_again, grad, rtol=1e-5, atol=1e-7)


def test_the_formula_of_this_file_is_that_of_a_number():
    rows, candidates = torch.tensor([[1.0], [0.5]]).double(), torch.tensor([[1.0], [0.25]]).double()
    first = -log(exp(10) / (exp(10) + exp(2.5)))
    second = -log(exp(1.25) / (exp(5) + exp(1.25)))
    assert nce(rows, candidates, everything).item() == pytest.approx((first + second) / 2)
