"""Products of queries with the vectors of a block: approximate for all rows, exact for a few.

An approximate score differs from the exact one by at most a margin. A row whose approximate score is further than that
below the k-th exact score is not among the k nearest. All others get their exact score, so a scan reads two bytes per
value and its result is exact.

The margin: let q be a query, v a stored vector, u = v / |v|, and h the bfloat16 `high` of v. bfloat16 has 8 significant
bits, so |h - v| <= 2^-8 |v|, and by Cauchy-Schwarz |q.h / |v| - q.u| <= 2^-8 |q|. If the processor multiplies bfloat16, the
query is rounded too and so is the product: each adds at most 2^-8 (1 + 2^-8)^2 |q|. Sums of float32 over dim values and the
factor 1 / |v| add less than dim 2^-22 |q|. Where all lengths of a block are nearly 1, products of many queries are not
divided by them: that adds ||v| - 1| |q|.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import torch

from actors import kernels
from pipeline.scan.block import Block

_ONE_BY_ONE = 4  # fewer queries than this are multiplied one after the other by the kernel
_PAIRS = 8192  # exact scores at a time
_NEARLY_ONE = 2.0**-9


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
        rounding = 2.0**-8 * (1 + 2 * (1 + 2.0**-8) ** 2 if self._bfloat16 else 1)
        self._lengths = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        self._margin = rounding + self.vectors.shape[1] * 2.0**-22

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.vectors)

    def approximate(self, block: Block, start: int, stop: int) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        """Return approximate scores of rows `start <= row < stop`, and the largest error of each query's scores.

        Returns:
            Scores [queries, rows], -inf for a row without a vector; margins float64 [queries].
        """
        factors = block.inverse_norms[start:stop]
        high, margin = _tensor(block.high[start:stop], torch.bfloat16), self._margin
        if self._one_by_one and self._kernels is not None:
            of_rows = _tensor(factors, torch.float32)
            scores = torch.stack([self._kernels.products(high, query, of_rows) for query in self._tensor])
        elif self._bfloat16:
            scores = self._tensor @ high.T
            if block.spread < _NEARLY_ONE:
                margin += 2 * block.spread
            else:
                scores = scores.float().mul_(_tensor(factors, torch.float32))
        else:
            scores = self._tensor @ high.to(self.device).float().T
            scores.mul_(_tensor(factors, torch.float32).to(self.device))
        if len(block.unfit):
            unfit = block.unfit[(block.unfit >= start) & (block.unfit < stop)] - start
            scores[:, torch.from_numpy(unfit).to(self.device)] = -torch.inf
        return scores, self._lengths * margin

    def exact(
        self, block: Block, queries: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Return the exact score of each pair of a query and a row of the block, float32 [pairs].

        It is the cosine if the query has length 1. Sums are float64, so equal vectors get equal scores.
        """
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _PAIRS):
            part = slice(start, start + _PAIRS)
            unit = block.unit_vectors(rows[part])
            scores[part] = (unit * self.vectors[queries[part]]).sum(axis=1)
        return scores


def _tensor(values: npt.NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous array as a tensor without a copy, which the caller must not write and must not keep.

    Torch warns of arrays that cannot be written, as those of a mapped file, so it gets the address.
    """
    if not values.size:
        return torch.empty(values.shape, dtype=dtype)
    memory = (ctypes.c_char * values.nbytes).from_address(values.ctypes.data)
    return torch.frombuffer(memory, dtype=dtype).view(values.shape)
