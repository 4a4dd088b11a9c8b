"""Token states to one unit vector per row, in float32 whatever the model computed in."""

from __future__ import annotations

import torch

from actors.encoders.packed import PackedBatch


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

    A vector of zeros has no direction; it becomes the first unit vector, so that no NaN leaves the encoder.
    """
    vectors = pooled[:, :dim]
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    first = torch.zeros_like(vectors)
    first[:, 0] = 1.0
    return torch.where(lengths > 1e-12, vectors / lengths.clamp_min(1e-12), first)
