"""Pools token states into one unit vector per row, in float32 whatever the model's compute type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from actors.encoders.compute.fused import fused, fuses
from actors.encoders.compute.transfer import to_device
from actors.encoders.packed import PackedBatch

Ints = npt.NDArray[np.int64]

# A vector shorter than this is treated as all zeros.
SHORTEST = 1e-12
# Tokens that one thread of `sum_stretches` adds.
_PIECE = 32


def pool(hidden: torch.Tensor, batch: PackedBatch, how: str) -> torch.Tensor:
    """Pools the token states of each row into one vector.

    Args:
        hidden: [tokens, hidden] in any float type.
        batch: Position of the rows.
        how: "mean" over all tokens, special ones included (of a picture: over its own and the marks of its start and end),
            "cls" (the first token) or "last".

    Returns:
        float32 [rows, hidden], not normalised.
    """
    if batch.pictures is not None and how == "mean":
        starts, stops = batch.pictures.pool_starts, batch.pictures.pool_stops
        return sums(hidden, starts, stops) / to_device(stops - starts, hidden.device)[:, None]
    if how == "cls":
        return hidden[batch.offsets[:-1].long()].float()
    if how == "last":
        return hidden[batch.offsets[1:].long() - 1].float()
    if hidden.device.type == "cpu":
        # For rows of equal length a plain mean over an axis is faster than a segmented one.
        return torch.cat(
            [hidden[run.tokens].view(run.rows, run.length, -1).mean(1, dtype=torch.float32) for run in batch.runs]
        )
    if fuses(hidden.device):
        return sum_stretches(hidden, batch.offsets[:-1], batch.offsets[1:], batch.lengths) / batch.row_lengths[:, None]
    # `unsafe` leaves out a check of the lengths, for which the host would wait.
    return torch.segment_reduce(hidden.float(), "mean", lengths=batch.row_lengths, axis=0, unsafe=True)


def finish(pooled: torch.Tensor, dim: int) -> torch.Tensor:
    """Slices to `dim`, then normalises. In the other order shortened vectors would not have unit length.

    Args:
        pooled: float32 [rows, hidden].
        dim: Width of the vectors.

    Returns:
        float32 [rows, dim]. A row without a unit vector is marked (`finite.refuse_unfit` reads the marks): it is NaN if any
        of its `hidden` values or their norm is not finite, and infinite if its first `dim` values are zeros, which have
        no direction.
    """
    vectors = pooled[:, :dim]
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # The values that the slice drops are checked too: if one of them is NaN, the others are not reliable.
    whole = lengths if dim == pooled.shape[1] else torch.linalg.vector_norm(pooled, dim=1, keepdim=True)
    marks = torch.where(torch.isfinite(whole), torch.inf, torch.nan)
    return torch.where((lengths > SHORTEST) & torch.isfinite(whole), vectors / lengths, marks)


def sums(hidden: torch.Tensor, starts: Ints, stops: Ints) -> torch.Tensor:
    """Returns the sums over `hidden[start:stop]`, float32 [stretches, hidden].

    Stretches must be in increasing order and not overlap.
    """
    return sums_by_slices(hidden, starts, stops) if hidden.device.type == "cpu" else sums_on_gpu(hidden, starts, stops)


def sums_by_slices(hidden: torch.Tensor, starts: Ints, stops: Ints) -> torch.Tensor:
    """Returns the sums over `hidden[start:stop]`, float32 [stretches, hidden]."""
    return torch.stack(
        [hidden[start:stop].sum(0, dtype=torch.float32) for start, stop in zip(starts, stops, strict=True)]
    )


def sums_on_gpu(hidden: torch.Tensor, starts: Ints, stops: Ints) -> torch.Tensor:
    """Returns the same as `sums_by_slices` in one call on a GPU.

    Deterministic: no stretch is summed by competing threads.
    """
    if fuses(hidden.device):
        ends = to_device(np.stack([starts, stops]).astype(np.int32), hidden.device)
        return sum_stretches(hidden, ends[0], ends[1], stops - starts)
    # `segment_reduce` needs segments that cover all tokens, so the gap before each stretch is a segment too, even if empty.
    before = starts - np.concatenate([[0], stops[:-1]])
    lengths = np.append(np.stack([before, stops - starts], axis=1).reshape(-1), len(hidden) - stops[-1])
    segments = to_device(lengths, hidden.device)
    # `unsafe` leaves out a check of the lengths, for which the host would wait.
    return torch.segment_reduce(hidden.float(), "sum", lengths=segments, axis=0, initial=0, unsafe=True)[1::2]


def sum_stretches(hidden: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor, lengths: Ints) -> torch.Tensor:
    """Sums stretches of token states in two levels: pieces of equal length, which are many however long a stretch is.

    No float32 copy of the states is needed, and no sum depends on which thread is first.

    Args:
        hidden: [tokens, hidden].
        starts: int32 [stretches], the first token of each.
        stops: int32 [stretches], the token after the last of each.
        lengths: Tokens of each on the host.

    Returns:
        float32 [stretches, hidden].
    """
    pieces = (stops - starts + (_PIECE - 1)) // _PIECE
    count = int((-(-lengths // _PIECE)).sum())
    owner = torch.arange(len(lengths), device=hidden.device).repeat_interleave(pieces, output_size=count)
    number = torch.arange(count, device=hidden.device) - (pieces.cumsum(0) - pieces)[owner]
    summed = _sum_pieces(hidden, starts[owner] + number * _PIECE, stops[owner])
    return torch.segment_reduce(summed, "sum", lengths=pieces, axis=0, initial=0, unsafe=True)


@fused
def _sum_pieces(hidden: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    places = starts[:, None] + torch.arange(_PIECE, device=hidden.device)
    states = hidden[places.clamp_max(len(hidden) - 1)].float()
    # Not a product with 0: the states of another row may be infinite.
    return states.masked_fill((places >= stops[:, None])[:, :, None], 0).sum(1)
