"""A micro-batch without padding: the tokens of all rows are concatenated, `[tokens, hidden]`.

Every family computes on a `PackedBatch`. Linear layers and norms do not depend on the ends of rows; attention
(`compute/attention.py`), positions and tasks do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from actors.encoders.compute.transfer import to_device
from actors.encoders.pictured import Picture, Pictures, place_pictures

# Tokens in a block of `PackedBatch.blocks`.
BLOCK = 128


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of equal length.

    Attributes:
        row: First row.
        rows: Number of rows.
        length: Tokens of each row.
        token: First token.
    """

    row: int
    rows: int
    length: int
    token: int

    @property
    def tokens(self) -> slice:
        """Slice of the flat token axis that holds the rows' tokens."""
        return slice(self.token, self.token + self.rows * self.length)


@dataclass(frozen=True, slots=True)
class Padded:
    """Neighbouring rows that are padded to the longest of them, which is at most twice as long as the shortest.

    Attributes:
        tokens: Slice of the flat token axis that holds the rows' tokens.
        rows: Number of rows.
        length: Tokens of the longest row.
        places: int64 [tokens], the place of each token among `rows * length`.
        valid: bool [rows, length], true where a place has a token.
    """

    tokens: slice
    rows: int
    length: int
    places: torch.Tensor
    valid: torch.Tensor


@dataclass(slots=True)
class PackedBatch:
    """Token ids of some rows and the position of each row.

    All numbers that the device needs are parts of one int32 buffer, which is copied to it once.

    Attributes:
        ids: int32 [tokens] on the device.
        positions: int32 [tokens] on the device, each token's position in its row, from 0.
        offsets: int32 [rows + 1] on the device, the start of each row and the end of the last.
        row_lengths: int32 [rows] on the device.
        row_tasks: int32 [rows] on the device, place of each row's task in `task_names`, -1 for a row without; empty
            if `tasks` is None.
        lengths: Tokens of each row, each 1 or more.
        runs: Neighbouring rows of equal length, covering all rows in order.
        tasks: One per row (None: no task), or None if no row has one.
        task_names: The distinct tasks, sorted.
        numbers: int64 [rows], the caller's numbers of the rows; by default from 0.
        pictures: The pictures of the rows; None if no row has one.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    row_lengths: torch.Tensor
    row_tasks: torch.Tensor
    lengths: npt.NDArray[np.int64]
    runs: tuple[Run, ...]
    tasks: tuple[str | None, ...] | None
    task_names: tuple[str, ...]
    numbers: npt.NDArray[np.int64]
    pictures: Pictures | None = None
    _padded: tuple[Padded, ...] = field(default=(), repr=False)
    _blocks: tuple[torch.Tensor, ...] = field(default=(), repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max())

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.ids.device

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Repeats one value per row ([rows, ...]) for each of its tokens ([tokens, ...])."""
        return values.repeat_interleave(self.row_lengths, dim=0, output_size=len(self.ids))

    def padded(self) -> tuple[Padded, ...]:
        """Returns all rows in groups of similar length, so that at most half of the places are padding.

        Rows in order of length make the fewest groups: one for each halving of the length.
        """
        if not self._padded:
            firsts, shortest, longest = [0], int(self.lengths[0]), int(self.lengths[0])
            for row, length in enumerate(self.lengths.tolist()):
                shortest, longest = min(shortest, length), max(longest, length)
                if longest > 2 * shortest:
                    firsts.append(row)
                    shortest = longest = length
            numbers = self._row_numbers()
            self._padded = tuple(self._pad(first, stop, numbers) for first, stop in pairwise([*firsts, self.rows]))
        return self._padded

    def blocks(self) -> tuple[torch.Tensor, ...]:
        """Returns the pairs of blocks of `BLOCK` tokens that share a row.

        Returns:
            int64 [tokens], the row of each token; int32 [blocks], with how many blocks each block shares a row; int32
            [blocks, blocks], their numbers, followed by those of all others.
        """
        if not self._blocks:
            tokens, numbers = len(self.ids), self._row_numbers()
            every = torch.arange(-(-tokens // BLOCK), device=self.device)
            # All rows of a block are neighbours, so it shares rows with neighbouring blocks.
            first = self.offsets[numbers[every * BLOCK]] // BLOCK
            last = (self.offsets[numbers[(every * BLOCK + BLOCK - 1).clamp_max(tokens - 1)] + 1] - 1) // BLOCK
            shared = (first[:, None] + every) % len(every)
            self._blocks = (numbers, (last - first + 1).int(), shared.int())
        return self._blocks

    def _row_numbers(self) -> torch.Tensor:
        return self.spread(torch.arange(self.rows, device=self.device))

    def _pad(self, first: int, stop: int, numbers: torch.Tensor) -> Padded:
        """Pads rows `first` to `stop`; `numbers` is the row of each token of the batch."""
        start = int(self.lengths[:first].sum())
        tokens = slice(start, start + int(self.lengths[first:stop].sum()))
        length = int(self.lengths[first:stop].max())
        places = (numbers[tokens] - first) * length + self.positions[tokens]
        valid = torch.arange(length, device=self.device) < self.row_lengths[first:stop, None]
        return Padded(tokens, stop - first, length, places, valid)


def pack(
    ids: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.int64],
    *,
    device: torch.device,
    tasks: Sequence[str | None] | None = None,
    numbers: npt.NDArray[np.int64] | None = None,
    pictures: Sequence[Picture | None] = (),
) -> PackedBatch:
    """Builds a batch from concatenated rows.

    Args:
        ids: [tokens], row after row.
        lengths: [rows], each 1 or more. Best sorted: neighbours of equal length share one attention call on a CPU.
        device: Device to compute on.
        tasks: One per row.
        numbers: The caller's numbers of the rows.
        pictures: One per row (None: a text), or empty.
    """
    lengths = np.ascontiguousarray(lengths, np.int64)
    cuts = np.flatnonzero(np.diff(lengths)) + 1
    firsts = np.concatenate([[0], cuts])
    counts = np.diff(np.concatenate([firsts, [len(lengths)]]))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    runs = tuple(
        Run(row=int(row), rows=int(rows), length=int(lengths[row]), token=int(starts[row]))
        for row, rows in zip(firsts, counts, strict=True)
    )
    tokens, rows = int(starts[-1]), len(lengths)
    positions = np.arange(tokens) - np.repeat(starts[:-1], lengths)
    names = tuple(sorted({task for task in tasks or () if task is not None}))
    places = {name: place for place, name in enumerate(names)}
    row_tasks = [-1 if task is None else places[task] for task in tasks or ()]
    sizes = [tokens, tokens, rows + 1, rows, len(row_tasks)]
    buffer = to_device(np.concatenate([ids, positions, starts, lengths, row_tasks]).astype(np.int32), device)
    ids_, positions_, offsets_, lengths_, tasks_ = torch.split(buffer, sizes)
    return PackedBatch(
        ids=ids_,
        positions=positions_,
        offsets=offsets_,
        row_lengths=lengths_,
        row_tasks=tasks_,
        lengths=lengths,
        runs=runs,
        tasks=None if tasks is None else tuple(tasks),
        task_names=names,
        numbers=np.arange(rows) if numbers is None else numbers,
        pictures=place_pictures(pictures, lengths, device),
    )
