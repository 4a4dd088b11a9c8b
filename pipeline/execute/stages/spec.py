"""Settings of the three stages of a run, and the input block of the first stage."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.schema import RewriteUnit, Unit
from actors.source.read_unit import SourceSpec
from actors.text.chunk_rules import Chunking
from actors.unit.writer import WriterSpec


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Settings of the stages of a run, small enough to be sent with each task."""

    source: SourceSpec
    model: ModelSpec
    writer: WriterSpec
    chunking: Chunking | None = None
    reuse: int = 0  # number of tables of the index of known texts
    row_timeout_s: float | None = None
    duplicates: bool = False  # True if the plan lists rows to quarantine for their id
    kept: bool = False  # True if changes of other tools are kept; they take precedence over rows of the source


def to_block(unit: Unit | RewriteUnit) -> pa.Table:
    """Return a unit as an input block of the first stage."""
    return pa.table({"unit": [unit.number], "payload": [pickle.dumps(unit)]})
