"""The receipt: the small JSON record that a unit leaves when its files are safely written.

Written by the writer, created if absent, so the first attempt to finish wins; read by the ledger at resume and publish. A publish
may read a million of them, hence orjson.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from actors.errors import InvariantBroken


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a unit.

    Attributes:
        path: Relative to the table's folder.
        partition: Partition column to value; None is null.
        stats: Delta Lake's statistics of the file (`numRecords`, `minValues`, `maxValues`, `nullCount`), as JSON.
    """

    path: str
    size_bytes: int
    rows: int
    partition: dict[str, str | None]
    stats: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one unit came to.

    `rows_read == rows + rows_bad` for tables of documents; with chunking `rows` counts chunks and `documents` the
    source rows behind them, so `rows_read == documents + rows_bad` always.

    Attributes:
        attempt: Random name of the attempt that won.
        encoded: Texts that went through the model: equal ones of a unit once, those with a vector in the table never.
        replaces: File of the table that this receipt's files stand in for; only in amendments.
        quarantine: Path of the file of bad rows relative to the run's folder, or None.
        truncated: Documents that were cut at the model's token limit.
        padding: Places that the model computed for nothing.
        seconds: Wall time by stage: read, tokenize, encode, write.
    """

    unit: int
    attempt: str
    files: tuple[DataFile, ...]
    rows_read: int
    documents: int
    rows: int
    rows_quarantined: int
    tokens: int
    truncated: int
    encoded: int = 0
    replaces: str | None = None
    quarantine: str | None = None
    padding: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InvariantBroken unless the receipt adds up."""
        if self.rows_read != self.documents + self.rows_quarantined:
            raise InvariantBroken(
                f"unit {self.unit}: {self.rows_read} rows were read, but {self.documents} embedded and "
                f"{self.rows_quarantined} set aside do not add up to them."
            )
        if self.rows != sum(file.rows for file in self.files):
            raise InvariantBroken(f"unit {self.unit}: its files do not hold the {self.rows} rows of its receipt.")

    def to_json(self) -> str:
        """One line of JSON."""
        return orjson.dumps(self, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """The receipt that `to_json` wrote."""
        document = orjson.loads(text)
        document["files"] = tuple(DataFile(**file) for file in document["files"])
        return cls(**document)
