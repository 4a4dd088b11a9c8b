"""Token states to one unit vector per row, in float32 whatever the model computed in."""

from __future__ import annotations

import torch

from actors.encoders.packed import PackedBatch

# A shorter vector counts as zeros.
SHORTEST = 1e-12


def pool(hidden: torch.Tensor, batch: PackedBatch, how: str) -> torch.Tensor:
    """One vector per row.

    Args:
        hidden: [tokens, hidden] in any float type.
        batch: Where the rows lie.
        how: "mean" over all tokens with special ones, "cls" (the first) or "last".

    Returns:
        float32 [rows, hidden], not normalised.
    """
    if how == "cls":
        return hidden[batch.offsets()[:-1].long()].float()
    if how == "last":
        return hidden[batch.offsets()[1:].long() - 1].float()
    if hidden.device.type == "cpu":
        # Rows of equal length are a plain mean over an axis, which is faster than a segmented one.
        return torch.cat(
            [hidden[run.tokens].view(run.rows, run.length, -1).mean(1, dtype=torch.float32) for run in batch.runs]
        )
    return torch.segment_reduce(hidden.float(), "mean", lengths=batch.row_lengths(), axis=0)


def finish(pooled: torch.Tensor, dim: int) -> torch.Tensor:
    """Slices to `dim`, then normalises: in this order, or shortened vectors would not have unit length.

    Args:
        pooled: float32 [rows, hidden].
        dim: Width of the vectors.

    Returns:
        float32 [rows, dim]. What has no unit vector is marked (`finite.refuse_unfit` reads the marks): a row is NaN where any
        of its `hidden` numbers is not finite or their length is not, and infinite where the first `dim` are zeros, which
        have no direction.
    """
    vectors = pooled[:, :dim]
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # What the slice leaves out counts too: a model that computes a NaN is not to be trusted with the rest.
    whole = lengths if dim == pooled.shape[1] else torch.linalg.vector_norm(pooled, dim=1, keepdim=True)
    marks = torch.where(torch.isfinite(whole), torch.inf, torch.nan)
    return torch.where((lengths > SHORTEST) & torch.isfinite(whole), vectors / lengths, marks)
