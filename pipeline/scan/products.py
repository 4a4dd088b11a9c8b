"""Products of queries with the vectors of a block: approximate for all rows, exact for a few.

An approximate score differs from the exact one by at most a margin. A row whose approximate score is further than that
below the k-th exact score is not among the k nearest. All others get their exact score, so a scan reads two bytes per
value and its result is exact.

The margin: let q be a query, v a stored vector, u = v / |v|, and h the bfloat16 `high` of v. bfloat16 has 8 significant
bits, so |h - v| <= 2^-8 |v|, and by Cauchy-Schwarz |q.h / |v| - q.u| <= 2^-8 |q|; nothing if h = v, as in a table of that
precision. If the processor multiplies bfloat16, the query is rounded too and so is the product: each adds at most
2^-8 (1 + 2^-8)^2 |q|. Sums of float32 over dim values and the factor 1 / |v| add less than dim 2^-22 |q|. Where all lengths
of a block are nearly 1, products of many queries by torch are not divided by them: that adds ||v| - 1| |q|. Vectors of any
length are never divided, and all errors are |v| times as large.

On a processor without products of bfloat16, many queries are multiplied by a kernel that compares the scores in registers
with the lowest one of interest. No score but those that are high enough is written to memory.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import torch

from actors import kernels
from actors.kernels import Pairs
from pipeline.scan.block import Block

_ONE_BY_ONE = 4  # fewer queries than this are multiplied one after the other by the kernel
_PAIRS = 256  # exact scores at a time, whose vectors stay in the processor's cache
_NEARLY_ONE = 2.0**-9
_SCORES = 1 << 22  # approximate scores at a time, if they are not compared as they are computed
_FEWEST_ROWS = 4096  # of a product at least


class Queries:
    """Query vectors on the device of the scan.

    Args:
        vectors: float32 [queries, dim], finite.
        device: "cpu", "cuda" or "auto" (a GPU if there is one).
    """

    def __init__(self, vectors: npt.NDArray[np.float32], *, device: str = "auto") -> None:
        self.vectors = np.array(vectors, np.float32, order="C")  # a copy that torch may share
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self._kernels = kernels.find() if self.device.type == "cpu" else None
        self._one_by_one = self._kernels is not None and len(vectors) < _ONE_BY_ONE
        self._bfloat16 = not self._one_by_one and self._kernels is not None and self._kernels.takes(torch.bfloat16)
        self._tensor = torch.from_numpy(self.vectors).to(self.device)
        if self._bfloat16:
            self._tensor = self._tensor.bfloat16()
        rounding = 2 * 2.0**-8 * (1 + 2.0**-8) ** 2 if self._bfloat16 else 0.0
        self._lengths = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        self._margin = rounding + self.vectors.shape[1] * 2.0**-22
        searched = self._kernels is not None and not self._one_by_one and not self._bfloat16
        self._packed = self._kernels.packed(self._tensor) if searched and self._kernels is not None else None

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.vectors)

    def margins(self, block: Block) -> npt.NDArray[np.float64]:
        """Return the largest error of each query's approximate scores, float64 [queries]."""
        margin = self._margin if block.low is None else self._margin + 2.0**-8
        if block.spread < _NEARLY_ONE and self._packed is None:
            margin += 2 * block.spread
        return np.asarray(self._lengths * margin * block.longest)

    def candidates(self, block: Block, start: int, stop: int, lowest: npt.NDArray[np.float64]) -> Pairs:
        """Return the pairs of a query and a row `start <= row < stop` with an approximate score of at least `lowest`.

        Args:
            block: The rows.
            start: The first row.
            stop: The row after the last one.
            lowest: float64 [queries]. Rows without a vector are not found, whatever it is.
        """
        thresholds = torch.from_numpy(np.maximum(lowest, np.finfo(np.float32).min).astype(np.float32))
        parts: list[Pairs] = []
        if self._packed is not None and self._kernels is not None:
            high, factors = _rows(block, start, stop)
            found = self._kernels.search(high, factors, self._packed, thresholds)
            parts = [(query, row + start, value) for query, row, value in found]
        else:
            step = max(_FEWEST_ROWS, _SCORES // max(1, len(self)))
            for first in range(start, stop, step):
                scores = self.approximate(block, first, min(first + step, stop))
                if self._kernels is not None:
                    query, row, value = self._kernels.select(scores, thresholds)
                else:
                    pairs = (scores >= thresholds.to(scores.device).unsqueeze(1)).nonzero(as_tuple=True)
                    query, row, value = (part.cpu().numpy() for part in (*pairs, scores[pairs].float()))
                parts.append((query, row + first, value))
        query, row, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return query, row, value

    def approximate(self, block: Block, start: int, stop: int) -> torch.Tensor:
        """Return approximate scores of rows `start <= row < stop`, [queries, rows]; -inf for a row without a vector."""
        high, factors = _rows(block, start, stop)
        if self._one_by_one and self._kernels is not None:
            scores = torch.empty(len(self), len(high))
            for number, query in enumerate(self._tensor):
                self._kernels.products(high, query, factors, scores[number])
        else:
            scores = self._tensor @ (high if self._bfloat16 else high.to(self.device).float()).T
            if block.spread >= _NEARLY_ONE or self._packed is not None:
                scores = scores.float().mul_(factors.to(self.device))
        if len(block.unfit):
            unfit = block.unfit[(block.unfit >= start) & (block.unfit < stop)] - start
            scores[:, torch.from_numpy(unfit).to(self.device)] = -torch.inf
        return scores

    def exact(
        self, block: Block, queries: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return the exact score of each pair of a query and a row of the block, float32 [pairs].

        It is the cosine if both have length 1. Sums are float64, so equal vectors get equal scores.
        """
        scores = np.empty(len(rows), np.float32)
        by_row = np.argsort(rows, kind="stable")  # a row may be near to many queries, and is made float64 once
        for start in range(0, len(rows), _PAIRS):
            part = by_row[start : start + _PAIRS]
            distinct, of_pair = np.unique(rows[part], return_inverse=True)
            scores[part] = (block.vectors(distinct)[of_pair] * self.vectors[queries[part]]).sum(axis=1)
        return scores


def _rows(block: Block, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high parts and the factors of some rows."""
    return _tensor(block.high[start:stop], torch.bfloat16), _tensor(block.factors[start:stop], torch.float32)


def _tensor(values: npt.NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous array as a tensor without a copy, which the caller must not write and must not keep.

    Torch warns of arrays that cannot be written, as those of a mapped file, so it gets the address.
    """
    if not values.size:
        return torch.empty(values.shape, dtype=dtype)
    memory = (ctypes.c_char * values.nbytes).from_address(values.ctypes.data)
    return torch.frombuffer(memory, dtype=dtype).view(values.shape)
