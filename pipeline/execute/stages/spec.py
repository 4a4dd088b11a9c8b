"""Settings of the three stages of a run, and the block that carries a unit to the first of them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.schema import (
    Unit,
)
from actors.source.read_unit import SourceSpec
from actors.text.chunk_rules import Chunking
from actors.unit.writer import WriterSpec

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything that the stages of a run need, small enough to travel with each task."""

    source: SourceSpec
    model: ModelSpec
    writer: WriterSpec
    chunking: Chunking | None = None
    reuse: int = 0  # tables of the index of known texts
    row_timeout_s: float | None = None
    kept: bool = False  # whether rows of other tools are kept, which decide over rows of the source


def to_block(unit: Unit) -> pa.Table:
    """A unit as the first stage takes it."""
    return pa.table({"unit": [unit.number], "payload": [pickle.dumps(unit)]})
