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

    Attributes:
        ids: int64 [tokens] on the device.
        lengths: Tokens of each row, each 1 or more.
        runs: Neighbouring rows of equal length, covering all rows in order.
        tasks: One per row (None: no task), or None if no row has one.
        numbers: int64 [rows], the caller's numbers of the rows; by default from 0.
    """

    ids: torch.Tensor
    lengths: npt.NDArray[np.int64]
    runs: tuple[Run, ...]
    tasks: tuple[str | None, ...] | None = None
    numbers: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _positions: torch.Tensor | None = field(default=None, repr=False)
    _offsets: torch.Tensor | None = field(default=None, repr=False)
    _lengths: torch.Tensor | None = field(default=None, repr=False)
    _padded: tuple[Padded, ...] = field(default=(), repr=False)

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

    def row_lengths(self) -> torch.Tensor:
        """Returns the tokens of each row, int64 [rows] on the device."""
        if self._lengths is None:
            self._lengths = torch.from_numpy(self.lengths).to(self.device)
        return self._lengths

    def positions(self) -> torch.Tensor:
        """Returns each token's position in its row, from 0, int64 [tokens]."""
        if self._positions is None:
            ends = np.cumsum(self.lengths)
            positions = np.arange(int(ends[-1])) - np.repeat(ends - self.lengths, self.lengths)
            self._positions = torch.from_numpy(positions).to(self.device)
        return self._positions

    def offsets(self) -> torch.Tensor:
        """Returns the start of each row and the end of the last, int32 [rows + 1]."""
        if self._offsets is None:
            ends = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
            self._offsets = torch.from_numpy(ends).to(self.device)
        return self._offsets

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Repeats one value per row ([rows, ...]) for each of its tokens ([tokens, ...])."""
        return values.repeat_interleave(self.row_lengths(), dim=0, output_size=len(self.ids))

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
            numbers = self.spread(torch.arange(self.rows, device=self.device))
            self._padded = tuple(self._pad(first, stop, numbers) for first, stop in pairwise([*firsts, self.rows]))
        return self._padded

    def _pad(self, first: int, stop: int, numbers: torch.Tensor) -> Padded:
        """Pads rows `first` to `stop`; `numbers` is the row of each token of the batch."""
        start = int(self.lengths[:first].sum())
        tokens = slice(start, start + int(self.lengths[first:stop].sum()))
        length = int(self.lengths[first:stop].max())
        places = (numbers[tokens] - first) * length + self.positions()[tokens]
        valid = torch.arange(length, device=self.device) < self.row_lengths()[first:stop, None]
        return Padded(tokens, stop - first, length, places, valid)


def pack(
    ids: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.int64],
    *,
    device: torch.device,
    tasks: Sequence[str | None] | None = None,
    numbers: npt.NDArray[np.int64] | None = None,
) -> PackedBatch:
    """Builds a batch from concatenated rows.

    Args:
        ids: [tokens], row after row.
        lengths: [rows], each 1 or more. Best sorted: neighbours of equal length share one attention call on a CPU.
        device: Device to compute on.
        tasks: One per row.
        numbers: The caller's numbers of the rows.
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
    flat = torch.from_numpy(np.ascontiguousarray(ids, np.int64))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    return PackedBatch(
        flat,
        lengths,
        runs,
        None if tasks is None else tuple(tasks),
        np.arange(len(lengths)) if numbers is None else numbers,
    )
