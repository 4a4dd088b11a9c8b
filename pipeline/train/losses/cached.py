"""Base of all losses: GradCache, texts of all ranks, Matryoshka, GOR, distillation, and terms by name.

`CachedLossMixin` of sentence-transformers does GradCache (2101.06983): it embeds mini-batches of `budget_tokens` tokens
without a graph, computes the loss on all vectors, and embeds again, one mini-batch at a time, to pass the gradients
on. Activations of one mini-batch at most are in memory, however many rows a step has. A step whose texts are together
no more than a mini-batch is embedded once. Scores are computed for a part of the rows at a time and again in the
backward pass, so their memory does not grow either.

A loss computes on the vectors of all ranks, gathered with their gradients. It returns its mean over the rows of its
own rank, or a number that is the same on all; DDP averages gradients, so they are those of one rank with all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from sentence_transformers.util import all_gather, get_rank, get_world_size
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.train.losses.known_pairs import KnownPairs

PART = 2**22  # scores that are computed at once: 16 MB in float32
NEVER = -1e9  # score of what is masked: its share of a softmax is 0, and all gradients stay finite
_OURS = ("text_hash", "teacher")  # features that the model does not read


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that all losses have.

    Attributes:
        budget_tokens: Tokens of a mini-batch.
        temperature: Number that cosines are divided by.
        widths: Numbers of dimensions that the loss is computed with, the model's own included; empty: that one only.
        gor: Weight of the spread-out term.
        distill: Weight of the distance to a teacher's vectors.
    """

    budget_tokens: int = 16384
    temperature: float = 0.05
    widths: tuple[int, ...] = ()
    gor: float = 0.0
    distill: float = 0.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What a step's rows have beside their vectors, over all ranks.

    Attributes:
        own: First row of this rank, and the one after its last.
        known: Pairs that are no negatives, and the numbers of all texts.
        labels: Scores or classes [rows]; empty if the data has none.
        teachers: A teacher's vectors of queries and of passages, each [rows, width]; empty if the data has none.
        masks: Tokens of each column that are none of the padding, bool [rows of this rank, longest].
    """

    own: tuple[int, int]
    known: KnownPairs
    labels: Tensor
    teachers: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all ranks; gradients flow back to each rank's own."""
    return all_gather(tensor, with_grad=tensor.requires_grad) if get_world_size() > 1 else tensor


def parts(begin: int, end: int, *, row_scores: int) -> Iterator[tuple[int, int]]:
    """Divide rows so that each part has at most `PART` scores, `row_scores` a row."""
    rows = max(1, PART // row_scores)
    return ((first, min(first + rows, end)) for first in range(begin, end, rows))


def recomputed(function: Callable[[int, int], Tensor], begin: int, end: int) -> Tensor:
    """Call a function whose intermediate tensors are computed again in the backward pass, not kept."""
    result: Tensor = checkpoint(function, begin, end, use_reentrant=False, preserve_rng_state=False)
    return result


def spread_out(vectors: Tensor) -> Tensor:
    """Return the second moment of the cosines of different rows, as far as it is above 1 / width.

    GOR (1708.06320), as in EmbeddingGemma (2509.20354): relu(mean of (x_i x_j)^2, i != j, - 1 / d). The sum
    of all squares is that of the Gram matrix [d, d], so the matrix of all pairs is not built.
    """
    rows, width = vectors.shape
    squares = (vectors.T @ vectors).square().sum() - vectors.square().sum(1).square().sum()
    return functional.relu(squares / max(1, rows * (rows - 1)) - 1 / width)


class CachedLoss(CachedLossMixin, nn.Module):
    """A loss with GradCache whose terms are named.

    Args:
        model: The model in training; its forward gives `sentence_embedding` [rows, width].
        settings: What all losses have.
        distillation: Compares with a teacher's vectors, and may have a projection to their width; shared by the losses
            whose teachers have the same width. None: the data has no teacher.
    """

    mini_batch_size = 32  # the mixin wants it; tokens decide

    def __init__(
        self, model: SentenceTransformer, settings: Settings, distillation: EmbedDistillLoss | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.mini_batch_num_tokens = settings.budget_tokens
        self.distillation = distillation
        self._rows: Rows
        self._terms: dict[str, Tensor]
        self._gradients: tuple[Tensor | None, ...]

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the terms on vectors of one width; each column is [rows of all ranks, width], of length 1."""
        raise NotImplementedError

    def uncut_terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the terms that Matryoshka does not repeat: here the mean of 1 - cosine to a teacher's vectors."""
        if self.distillation is None:
            return {}
        # On all ranks' rows, so that the projection, which DDP does not know, has the same gradient on every rank.
        loss = self.distillation.compute_loss_from_embeddings(list(columns[: len(rows.teachers)]), list(rows.teachers))
        return {"distill": self.settings.distill * loss}

    def columns_of(self, reps: list[list[Tensor]]) -> list[Tensor]:
        """Return the vectors of all ranks for each column, float32 or float64."""
        return [gather(at_least_float32(torch.cat(minibatches))) for minibatches in reps]

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from the vectors of all mini-batches; called by `CachedLossMixin`.

        With `with_backward`, the gradients are put on `reps`.
        """
        del labels  # in `_rows`, with those of all ranks
        with torch.autocast(reps[0][0].device.type, enabled=False):
            terms = self._all_terms(self.columns_of(reps))
            total = torch.stack(list(terms.values())).sum()
            self._terms = {name: value.detach() for name, value in terms.items()}
            if not with_backward:
                return total
            leaves = [rep for column in reps for rep in column]
            own = self._own_parameters()
            gradients = torch.autograd.grad(total, [*leaves, *own], allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=False):
            leaf.grad = gradient
        self._gradients = gradients[len(leaves) :]
        return total.detach()

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms by name; the loss is their sum, and has a gradient.

        Args:
            sentence_features: Query, passage, negatives: `input_ids`, `attention_mask`, `text_hash`, perhaps `teacher`.
            labels: Scores or classes [rows of this rank].
        """
        features = list(sentence_features)
        self._rows = self._rows_of(features, labels)
        columns = [{k: v for k, v in column.items() if k not in _OURS} for column in features]
        if torch.is_grad_enabled() and self._is_one_minibatch(columns):
            return self._forward_once(columns)
        total = self.forward_cached(columns)
        terms = dict(self._terms)
        if total.requires_grad:
            own, gradients = self._own_parameters(), self._gradients

            def pass_on(scale: Tensor) -> None:
                for parameter, gradient in zip(own, gradients, strict=True):
                    if gradient is not None:
                        add = gradient * scale
                        parameter.grad = add if parameter.grad is None else parameter.grad + add

            total.register_hook(pass_on)  # type: ignore[no-untyped-call]
            first = next(iter(terms))
            terms[first] = terms[first] + (total - total.detach())  # the trainer adds the terms up
        return terms

    def _is_one_minibatch(self, columns: list[dict[str, Tensor]]) -> bool:
        """Tell whether all texts of a step together are a mini-batch; on several ranks the step is always divided.

        Ranks must reach their collective operations in one order, and each has texts of other lengths.
        """
        if get_world_size() > 1:
            return False
        tokens = sum(int(column["attention_mask"].sum()) for column in columns)
        return tokens <= (self.mini_batch_num_tokens or 0)

    def _forward_once(self, columns: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the terms of a step that needs no GradCache: autograd has the whole graph."""
        reps = [
            [self.embed_minibatch(column, 0, len(column["attention_mask"]), with_grad=True, copy_random_state=False)[0]]
            for column in columns
        ]
        with torch.autocast(reps[0][0].device.type, enabled=False):
            return self._all_terms(self.columns_of(reps))

    def _all_terms(self, columns: list[Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for width in self.settings.widths or (columns[0].shape[1],):
            cut = [functional.normalize(column[:, :width], dim=-1) for column in columns]
            named = self.terms(cut, self._rows)
            if self.settings.gor:
                named["gor"] = self.settings.gor * torch.stack([spread_out(column) for column in cut[:2]]).sum()
            terms |= {f"{name}_{width}" if self.settings.widths else name: value for name, value in named.items()}
        return terms | self.uncut_terms(columns, self._rows)

    def _own_parameters(self) -> list[nn.Parameter]:
        projection = None if self.distillation is None else self.distillation.projection
        return [] if projection is None else list(projection.parameters())

    def _rows_of(self, features: list[dict[str, Tensor]], labels: Tensor | None) -> Rows:
        count = len(features[0]["text_hash"])
        first = get_rank() * count
        return Rows(
            own=(first, first + count),
            known=KnownPairs([gather(column["text_hash"]) for column in features]),
            labels=features[0]["text_hash"].new_empty(0) if labels is None else gather(labels),
            teachers=tuple(gather(column["teacher"]) for column in features if "teacher" in column),
            masks=tuple(column["attention_mask"].bool() for column in features),
        )


def at_least_float32(vectors: Tensor) -> Tensor:
    """Return the vectors in float32, or in float64 if they are."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
