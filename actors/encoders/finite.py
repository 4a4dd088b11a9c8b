"""Refuses rows without a unit vector: their values are not finite, or all zero, which has no direction.

Checked once, at the output of the model, for every family, device and type: `pooling.finish` marks such rows on the device,
and `refuse_unfit` reads the marks from one column. No substitute vector is made. The vectors of the other rows are returned
unchanged, so the pipeline quarantines the invalid rows and encodes nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from actors.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NOT_FINITE = (
    "its vector is not finite (NaN or infinite): the model's numbers overflow on this text, or its weights are damaged"
)
NO_DIRECTION = "its vector is all zeros, which have no direction"


class UnfitVectors(DataError):
    """Raised when rows of a call have no unit vector.

    Args:
        message: As for every error.
        reasons: Reason by the row's number.
        vectors: float32 [rows, dim]; valid for the other rows, in the order of the call.
    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None, vectors: Floats | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})
        self.vectors = np.empty((0, 0), np.float32) if vectors is None else vectors

    def __reduce__(self) -> tuple[type[UnfitVectors], tuple[str, dict[int, str], Floats]]:
        """Return what `pickle` needs to create the error again with its reasons and vectors."""
        return type(self), (self.message, self.reasons, self.vectors)


def reasons_of(vectors: Floats) -> dict[int, str]:
    """Returns the reason of each vector that is marked, by its number, in their order."""
    marks = vectors[:, 0]
    return {
        int(row): NOT_FINITE if np.isnan(marks[row]) else NO_DIRECTION for row in np.flatnonzero(~np.isfinite(marks))
    }


def refuse_unfit(vectors: Floats, name: Callable[[int], str]) -> Floats:
    """Returns the vectors if each row has one.

    Args:
        vectors: float32 [rows, dim] as `pooling.finish` returns them.
        name: Returns a row's name for the message, such as "row 3".

    Raises:
        UnfitVectors: A row has no vector; the first is named.
    """
    reasons = reasons_of(vectors)
    if not reasons:
        return vectors
    first = next(iter(reasons))
    others = f" ({len(reasons)} of {len(vectors)} have none)" if len(reasons) > 1 else ""
    raise UnfitVectors(f"{name(first)} has no vector: {reasons[first]}{others}.", reasons, vectors)
