"""Receipt of a unit: a small JSON record, created after all files of the unit are written.

The writer creates it only if absent, so the first attempt to finish wins. The ledger reads it on resume and on publish.
A publish may read a million receipts, therefore orjson.
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
        stats: Delta Lake statistics of the file (`numRecords`, `minValues`, `maxValues`, `nullCount`), as JSON.
        digest: Digest of the rows (`actors.unit.row_hashes`); None where it is unknown, as for another tool's file.
    """

    path: str
    size_bytes: int
    rows: int
    partition: dict[str, str | None]
    stats: str
    digest: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """Result of one unit.

    `rows_read == documents + rows_quarantined`. With chunking `rows` counts chunks and `documents` the source rows;
    without chunking both are equal.

    Attributes:
        attempt: Random name of the attempt that finished first.
        encoded: Texts and pages that went through the model: equal ones of a unit once, those with a stored vector never.
        replaces: Table file that the files of this receipt replace; only in receipt overrides.
        quarantine: Paths of the files of quarantined rows, relative to the run's folder.
        truncated: Documents that were cut at the model's token limit.
        padding: Padding tokens that the model computed.
        animated: Pictures of several frames, of which the first is embedded.
        unconverted: Pictures with a colour profile that cannot be used.
        seconds: Wall time by stage: read, tokenize, encode, write.
        figures: What only the report shows (`actors.unit.figures`), as JSON; empty in older receipts.
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
    quarantine: tuple[str, ...] = ()
    padding: int = 0
    animated: int = 0
    unconverted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    figures: str = ""

    def check(self) -> None:
        """Raise InvariantBroken if the counts of the receipt are inconsistent."""
        if self.rows_read != self.documents + self.rows_quarantined:
            raise InvariantBroken(
                f"unit {self.unit}: {self.rows_read} rows were read, but {self.documents} embedded and "
                f"{self.rows_quarantined} quarantined do not sum to that."
            )
        if self.rows != sum(file.rows for file in self.files):
            raise InvariantBroken(f"unit {self.unit}: its files do not have the {self.rows} rows of its receipt.")

    def to_json(self) -> str:
        """Return the receipt as one line of JSON."""
        return orjson.dumps(self, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """Return the receipt that `to_json` wrote."""
        document = orjson.loads(text)
        document["files"] = tuple(DataFile(**file) for file in document["files"])
        paths = document["quarantine"] or ()
        # Receipts of a development version have the paths as one text.
        document["quarantine"] = tuple(paths.split(",") if isinstance(paths, str) else paths)
        return cls(**document)


def override_of(unit: int, file: DataFile) -> Receipt:
    """Return the receipt override for a file of the table that is to be replaced, before its rows are."""
    rows = file.rows
    return Receipt(unit, "", (file,), rows, rows, rows, 0, 0, 0, replaces=file.path)
