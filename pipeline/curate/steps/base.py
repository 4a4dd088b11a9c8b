"""Contract of a step of a curation.

A step has two parts. `measure` computes columns of one unit from its texts while the source is read; the result is
stored, so no later run with the same settings computes it again. `decide` sees all rows that the steps before it kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.errors import ConfigError
from pipeline.execute.progress import Reporter
from pipeline.job.config import Run

if TYPE_CHECKING:
    import duckdb

SEED = 0  # of all that is drawn


@dataclass(frozen=True)
class Seen:
    """The rows that a step decides about.

    Attributes:
        connection: A DuckDB database on a local disk with a limit of memory. A step may create tables in it, whose names
            begin with the name of the step.
        rows: Name of a view of the rows that all earlier steps kept: `n` (BIGINT, unique, ascending with the row id, dense
            over all rows of the job), `id`, `source` (null without a source column), the sides, and the raw columns.
        sides: Columns of texts: `query` and `passage`, or `text`.
        folder: URL of a folder below the table for caches; steps share the vectors of texts in it.
        run: Distribution of the work, as the job has it.
    """

    connection: duckdb.DuckDBPyConnection
    rows: str
    sides: tuple[str, ...]
    reporter: Reporter
    folder: str
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class Decision:
    """What a step decided.

    Attributes:
        table: Name of a DuckDB table or view with `n`, the columns of `Step.schema`, and `dropped` (BOOLEAN). A row that
            is not in it has null in all columns and is kept.
        evidence: Plain data for the report: counts, histograms, capped buckets.
    """

    table: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepCount:
    """Rows that a step saw and dropped, or would see and drop."""

    name: str
    rows: int
    dropped: int


def chosen(sides: Sequence[str], side: str) -> tuple[str, ...]:
    """Return the sides that the key `side` of a step names: one or both of a pair; a document has one."""
    return tuple(each for each in sides if len(sides) == 1 or side in (each, "both"))


def marks(most: int) -> list[int]:
    """Return 1, 2, 5, 10, ... up to a number."""
    return [
        mark for power in range(len(str(most))) for mark in (10**power, 2 * 10**power, 5 * 10**power) if mark <= most
    ]


class Step:
    """A step.

    Args:
        settings: Its settings, a class of `pipeline.job.curation` of the same name.
        sides: Columns of texts: `query` and `passage`, or `text`.
    """

    name: str

    def __init__(self, settings: Any, sides: Sequence[str]) -> None:
        self.settings = settings
        self.sides = tuple(sides)

    def schema(self) -> pa.Schema:
        """Return the columns that the step adds to the table."""
        raise NotImplementedError

    def raw(self) -> pa.Schema:
        """Return the columns that `measure` computes. Those that are in no step's `schema` are not in the table."""
        return pa.schema([])

    def raw_settings(self) -> dict[str, Any]:
        """Return the settings that the raw columns depend on, as plain data: the name of what is stored has their hash."""
        return {}

    def measure(self, sides: Sequence[pa.StringArray]) -> pa.RecordBatch:
        """Return the raw columns of the rows of one unit, from its texts (one array a side, with nulls)."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError if the step cannot run: a package or a model is missing. Called before anything is read."""

    def lineage(self) -> dict[str, Any]:
        """Return what determines the decision beyond the settings, such as the hashes of a model."""
        return {}

    def decide(self, seen: Seen) -> Decision:
        """Return the decision about the rows that the earlier steps kept."""
        raise NotImplementedError

    def differs_only_in(self, key: str, before: Mapping[str, Any]) -> bool:
        """Return whether all other settings are those with which the table was made."""
        return {**self.settings.model_dump(mode="json"), key: before[key]} == dict(before)

    def view(self, before: Mapping[str, Any]) -> str:
        """Return the SQL condition, over columns of the table, of the rows that these settings drop.

        Called only if the settings differ. The condition is evaluated without running the step.

        Args:
            before: Settings with which the table was made.

        Raises:
            ConfigError: the settings are looser, or the measures of the table do not show what they drop.
        """
        raise ConfigError(
            f"the measures in the table do not show what steps.{self.name} drops with other settings than "
            f"{dict(before)}; run without --view"
        )
