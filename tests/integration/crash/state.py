"""The state of a table after a crash, and its differences from a table without one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable

from pipeline.ledger.ledger import Ledger
from pipeline.table import delta_table


@dataclass(frozen=True, slots=True)
class State:
    """A table's current version.

    Attributes:
        rows: By id and source file: everything but the vector, and the vector.
        times: How often each of those is there.
        quarantine: Source file, id and reason of every quarantined row.
        missing: Files of the version that are not there with their size.
    """

    version: int
    rows: dict[tuple[str, str], tuple[tuple[object, ...], np.ndarray[Any, Any]]]
    times: Counter[tuple[str, str]]
    quarantine: Counter[tuple[object, ...]]
    missing: list[str]


def state_of(table: Path) -> State:
    """Return everything that readers see of a table, and the files that are missing."""
    opened = DeltaTable(str(table))
    found = opened.to_pyarrow_table().to_pylist()
    made = delta_table.state_of(opened)
    assert made is not None
    ledger = Ledger(str(table), made.run)
    bad = ledger.quarantine(ledger.receipts().values()).to_pylist()
    sizes = delta_table.file_sizes(opened)
    return State(
        opened.version(),
        {_key(row): (_plain(row), np.array(row["embedding"])) for row in found},
        Counter(map(_key, found)),
        Counter((row["shard"], row["id"], row["reason"]) for row in bad),
        [path for path, size in sizes.items() if not _is_there(table / path, size)],
    )


def unnamed(table: Path) -> list[str]:
    """Data files that the current version does not name."""
    named = delta_table.file_sizes(DeltaTable(str(table)))
    there = (str(path.relative_to(table)) for path in (table / "data").rglob("*") if path.is_file())
    return sorted(path for path in there if path not in named)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["id"], row["_shard"]


def _plain(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in sorted(row) if name != "embedding")


@dataclass(frozen=True, slots=True)
class Difference:
    """What one table has otherwise than another."""

    lost: int
    doubled: int
    words: list[str]


def difference(found: State, whole: State, *, same_version: bool = True) -> Difference:
    """Return the differences of `found` from `whole`."""
    lost, more = whole.times - found.times, found.times - whole.times
    bad = (found.quarantine - whole.quarantine) + (whole.quarantine - found.quarantine)
    wrong: dict[str, list[Any]] = {
        "lost": sorted(lost),
        "doubled, or not of the source": sorted(more),
        "other values": [key for key in whole.rows.keys() & found.rows.keys() if not _same(whole, found, key)],
        "quarantined otherwise": list(bad),
        "files that are not there": found.missing,
        "another version": [found.version] if same_version and found.version != whole.version else [],
    }
    return Difference(
        sum(lost.values()), sum(more.values()), [f"{what}: {which}" for what, which in wrong.items() if which]
    )


@dataclass(slots=True)
class Tally:
    """Counts of the tried points and their results."""

    points: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, where: str, found: State, from_whole: Difference) -> None:
        """Count what one crash changed."""
        self.rows += sum(found.times.values())
        self.lost += from_whole.lost
        self.doubled += from_whole.doubled
        self.wrong += [f"{where}: {words}" for words in from_whole.words]


def _same(left: State, right: State, key: tuple[str, str]) -> bool:
    (plain, vector), (other, same) = left.rows[key], right.rows[key]
    return plain == other and bool(np.allclose(vector, same, atol=1e-3))
