"""The joint loss of jina-embeddings-v4: dense vectors and late interaction, from one pass of the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import RandContext, _create_minibatch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from sentence_transformers.util import all_gather_padded, cat_padded_token_embeddings, get_world_size, mean_maxsim
from torch import Tensor
from torch.nn import functional

from pipeline.train.losses.cached import NEVER, PART, Rows, Settings, at_least_float32, parts, recomputed
from pipeline.train.losses.infonce import InfoNCE, contrast, positive_first


class Joint(InfoNCE):
    """NCE(dense) + NCE(late) + KL(dense || late) over the scores of queries and passages, of 2506.18902.

    Dense scores are cosines. Late scores are the mean over a query's tokens of the largest product with a token of the
    passage (in training they are divided by the number of tokens, in search they are not). Each NCE is that of a query
    against all passages and negatives. KL compares the softmax over a row of all dense scores / t, which is the target,
    with that of the late ones. The weights of the terms are not published: they are 1 here. Matryoshka cuts the dense NCE.

    Terms: `nce`, `nce_late`, `kl`.

    Args:
        model: See `CachedLoss`; its forward gives `token_embeddings` [rows, longest, width] too, of length 1, or 0 where
            there is no token.
        settings: See `CachedLoss`.
        distillation: See `CachedLoss`.
        detach_dense: Whether the dense scores get no gradient from KL. The paper does not say.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: Settings,
        distillation: EmbedDistillLoss | None = None,
        *,
        detach_dense: bool = False,
    ) -> None:
        super().__init__(model, settings, distillation)
        self.detach_dense = detach_dense
        self._widths = (0, 0)  # of a dense vector, and of a token's
        self._late: list[tuple[Tensor, Tensor]]  # vectors of each column's tokens, and which of them are tokens

    def embed_minibatch(  # noqa: PLR0917 - the signature of the mixin
        self,
        sentence_feature: dict[str, Tensor],
        begin: int,
        end: int,
        with_grad: bool,  # noqa: FBT001
        copy_random_state: bool,  # noqa: FBT001
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        """Return dense vectors and, behind each, those of its tokens: the mixin keeps the gradient of one tensor."""
        minibatch = _create_minibatch(sentence_feature, begin, end)
        with nullcontext() if random_state is None else random_state, nullcontext() if with_grad else torch.no_grad():
            random_state = RandContext(*minibatch.values()) if copy_random_state else None
            outputs = self.model(minibatch)
        dense, late = outputs["sentence_embedding"], outputs["token_embeddings"]
        self._widths = dense.shape[1], late.shape[2]
        return torch.cat([at_least_float32(dense), at_least_float32(late).flatten(1)], dim=1), random_state

    def columns_of(self, reps: list[list[Tensor]]) -> list[Tensor]:
        """Return the dense vectors of all ranks, and keep those of the tokens: passages' of all ranks, queries' of this."""
        dense, late = self._widths
        self._late = []
        for column, mask in zip(reps, self._rows.masks, strict=True):
            tokens = [rep[:, dense:].view(len(rep), -1, late) for rep in column]
            padded = [functional.pad(each, (0, 0, 0, mask.shape[1] - each.shape[1])) for each in tokens]
            here = torch.cat(padded), mask
            of_queries = not self._late
            self._late.append(here if of_queries or get_world_size() == 1 else all_gather_padded(*here, with_grad=True))
        return super().columns_of([[rep[:, :dense] for rep in column] for column in reps])

    def terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Compute the dense NCE of one width."""
        query, *candidates = columns
        return {
            "nce": contrast(
                query,
                torch.cat(candidates),
                own=rows.own,
                mask=lambda begin, end: self.no_negatives(rows, begin, end),
                temperature=self.settings.temperature,
            )
        }

    def uncut_terms(self, columns: Sequence[Tensor], rows: Rows) -> dict[str, Tensor]:
        """Add the late NCE and KL."""
        first, last = rows.own
        query, *candidates = (functional.normalize(column, dim=-1) for column in columns)
        passages = torch.cat(candidates)
        (query_tokens, query_mask), *others = self._late
        tokens, mask = cat_padded_token_embeddings([each for each, _ in others], [each for _, each in others])

        def part(begin: int, end: int) -> Tensor:
            here = slice(begin - first, end - first)
            late = mean_maxsim(query_tokens[here], tokens, query_mask[here], mask, chunk_elements=PART)
            dense = query[begin:end] @ passages.T
            never = positive_first(self.no_negatives(rows, begin, end), begin)
            late, dense = ((each / self.settings.temperature).masked_fill(never, NEVER) for each in (late, dense))
            target = (dense.detach() if self.detach_dense else dense).log_softmax(1)
            positives = torch.arange(begin, end, device=late.device)
            return torch.stack(
                [
                    functional.cross_entropy(late, positives, reduction="sum"),
                    functional.kl_div(late.log_softmax(1), target, log_target=True, reduction="sum"),
                ]
            )

        row_scores = len(tokens) * query_tokens.shape[1]
        sums = [recomputed(part, *each) for each in parts(first, last, row_scores=row_scores)]
        late, kl = torch.stack(sums).sum(0) / (last - first)
        return {"nce_late": late, "kl": kl} | super().uncut_terms(columns, rows)
