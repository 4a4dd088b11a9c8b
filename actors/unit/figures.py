"""Figures of a unit for the report of its run: token lengths, norms of vectors, reasons of quarantine, the time of its end.

Workers measure them, and a receipt has them as one text. Nothing but the report parses that text, so that a publish that
reads a million receipts does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa

from actors.vectors import VectorColumn

# Smallest length of each bin, two bins for each doubling: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
BINS = (0, 1, *(edge for power in range(20) for edge in (2 << power, 3 << power)))


@dataclass(slots=True)
class Figures:
    """Figures of a unit, or of several.

    Attributes:
        finished_s: Time when the unit was complete, in seconds since the epoch; 0 if it is unknown.
        lengths: Number of texts, or pages, in each bin of token lengths (`BINS`); bins after the last text are left out.
        longest: Tokens of the longest of them.
        norms: Column of vectors to the number of vectors, their smallest norm, the sum of the norms, and the largest norm.
        reasons: Reason to number of quarantined rows.
    """

    finished_s: float = 0.0
    lengths: list[int] = field(default_factory=list)
    longest: int = 0
    norms: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the figures as one line of JSON."""
        return orjson.dumps(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Figures:
        """Return the figures that `to_json` wrote; of an empty text, which older receipts have, no figures."""
        return cls(**orjson.loads(text)) if text else cls()

    def measure_lengths(self, lengths: pa.ChunkedArray) -> None:
        """Set the bins to the token lengths of a unit's texts."""
        tokens = lengths.to_numpy()
        counts = np.bincount(np.searchsorted(BINS, tokens, side="right") - 1) if len(tokens) else np.zeros(0, np.int64)
        self.lengths, self.longest = counts.tolist(), int(tokens.max(initial=0))

    def measure_norms(self, rows: pa.Table, outputs: Sequence[VectorColumn]) -> None:
        """Set the norms to those of the dense vectors as they are stored.

        Rows of another tool without a vector are left out. Of many vectors a row only the directions are stored, and the
        encoding of many may have any norm.
        """
        for output in outputs:
            if not output.single:
                continue
            norms = [np.zeros(0, np.float32)]
            for chunk in rows.column(output.name).chunks:
                vectors = output.matrix(chunk)
                norms.append(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))
            finite = np.concatenate(norms)
            finite = finite[np.isfinite(finite)]
            if len(finite):
                total = float(finite.sum(dtype=np.float64))
                self.norms[output.name] = [len(finite), float(finite.min()), total, float(finite.max())]

    def add(self, other: Figures) -> None:
        """Add the figures of another unit."""
        self.finished_s = max(self.finished_s, other.finished_s)
        self.lengths += [0] * (len(other.lengths) - len(self.lengths))
        for number, texts in enumerate(other.lengths):
            self.lengths[number] += texts
        self.longest = max(self.longest, other.longest)
        for name, (count, least, total, most) in other.norms.items():
            mine = self.norms.get(name, [0, least, 0.0, most])
            self.norms[name] = [mine[0] + count, min(mine[1], least), mine[2] + total, max(mine[3], most)]
        for reason, rows in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + rows
