"""Pictures among the rows of a packed batch: their pixels, and where their tokens are.

A picture's row is a prompt with one place for each of its tokens. The model puts the states of its vision tower there.
Qwen2.5-VL gives a token three positions: time, row and column. For tokens of texts they are equal. The tokens of a picture
that begins at position s have the positions (s, s + row, s + column), and the token after it has s + the longer side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from actors.encoders.compute.transfer import to_device
from actors.images.pixels import grid_of
from actors.schema import PICTURE, PREFIX

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture of one row.

    Attributes:
        pixels: As `actors.images.pixels.pack_pixels` returns them.
        start: Number of the row's tokens before those of the picture.
    """

    pixels: bytes
    start: int


@dataclass(frozen=True, slots=True)
class PictureRows:
    """The pictures of rows, by the rows' numbers.

    Attributes:
        pixels: `binary`, null for rows without a picture.
        starts: `int32`, as in `Picture`.
    """

    pixels: pa.ChunkedArray
    starts: pa.ChunkedArray

    def take(self, rows: Ints) -> list[Picture | None]:
        """Returns the pictures of some rows. Only their bytes are copied, because those of all rows may be gigabytes."""
        found = ((self.pixels[int(row)].as_py(), self.starts[int(row)].as_py()) for row in rows)
        return [None if pixels is None else Picture(pixels, start) for pixels, start in found]


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a batch.

    Attributes:
        pixels: Those of each picture, in the order of its rows.
        places: int64 [tokens of pictures] on the device, their places among the batch's tokens.
        positions: int32 [3, tokens] on the device: time, row and column of every token of the batch.
        pool_starts, pool_stops: int64 [rows], the range of the batch's tokens that a row's vector is the mean of: all of a
            text, and of a picture its tokens with the marks of its start and end.
    """

    pixels: tuple[bytes, ...]
    places: torch.Tensor
    positions: torch.Tensor
    pool_starts: Ints
    pool_stops: Ints


def place_pictures(pictures: Sequence[Picture | None], lengths: Ints, device: torch.device) -> Pictures | None:
    """Returns the pictures of a batch with these lengths of rows; None if no row has one."""
    if all(picture is None for picture in pictures):
        return None
    stops = np.cumsum(lengths)
    starts = stops - lengths
    pool_starts, pool_stops = starts.copy(), stops.copy()
    places, positions = [], []
    for row, picture in enumerate(pictures):
        if picture is None:
            positions.append(np.tile(np.arange(lengths[row]), (3, 1)))
            continue
        grid = grid_of(picture.pixels)
        tokens = grid[0] * grid[1]
        first = int(starts[row]) + picture.start
        places.append(np.arange(first, first + tokens))
        pool_starts[row], pool_stops[row] = first - 1, first + tokens + 1
        positions.append(axial_positions(int(lengths[row]), picture.start, grid))
    return Pictures(
        pixels=tuple(picture.pixels for picture in pictures if picture is not None),
        places=to_device(np.concatenate(places), device),
        positions=to_device(np.concatenate(positions, axis=1).astype(np.int32), device),
        pool_starts=pool_starts,
        pool_stops=pool_stops,
    )


def axial_positions(length: int, start: int, grid: tuple[int, int]) -> Ints:
    """Returns the positions of a picture's row.

    Args:
        length: Tokens of the row.
        start: Number of tokens before the picture's.
        grid: Rows and columns of the picture's tokens.

    Returns:
        int64 [3, length]: time, row and column.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    inside = start + np.stack([np.zeros_like(rows), rows, columns])
    before, after = np.arange(start), start + max(grid) + np.arange(length - start - len(rows))
    return np.concatenate([np.tile(before, (3, 1)), inside, np.tile(after, (3, 1))], axis=1)


def pictures_of(rows: pa.Table) -> PictureRows | None:
    """Returns the pictures of prepared rows; None if no row has one."""
    if PICTURE not in rows.column_names or rows[PICTURE].null_count == rows.num_rows:
        return None
    return PictureRows(rows[PICTURE], rows[PREFIX])
