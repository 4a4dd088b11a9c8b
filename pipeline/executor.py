"""Where units are run: inside this process, or on Ray (`dataflow`).

Chosen by the run. Both put a unit through the same three stages. Inside the process nothing has to be started, which is
right for a handful of units and in tests; a row that kills the process then kills the run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from actors.errors import VectideError
from actors.receipt import Receipt
from actors.schema import Unit
from actors.writer import WriterSpec
from pipeline.attempts import Book, NoBook
from pipeline.config import Run
from pipeline.pool import Pool
from pipeline.stages import EncodeStage, StageSpec, read_and_tokenize, rewrite, to_block, write

# Every micro-batch has a length of its own, and for each oneDNN keeps a compiled kernel of some 0.7 MiB: an encoder on a CPU
# grew for minutes. So few are kept.
LEAN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended: a receipt, or the error that stopped it.

    Attributes:
        reasons: Why rows were set aside, and how many for each reason.
        busy: Encoders that were at work when it ended, where that can be told.
    """

    unit: int
    receipt: Receipt | None
    error: VectideError | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    busy: int | None = None


def opened(block: pa.Table) -> UnitOutcome:
    """What the write stage handed on."""
    unit = block.column("unit")[0].as_py()
    outcome = pickle.loads(block.column("outcome")[0].as_py())  # noqa: S301  (made by our own write stage)
    if isinstance(outcome, Receipt):
        reasons = pickle.loads(block.column("reasons")[0].as_py())  # noqa: S301  (as above)
        return UnitOutcome(unit, outcome, None, reasons)
    return UnitOutcome(unit, None, outcome)


class Executor(Protocol):
    """Something that runs units."""

    pool: Pool
    book: Book

    def run(self, units: Iterable[Unit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """Run units and yield how each ended, as they end."""

    def rewrite(self, units: Iterable[Unit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """As `run`, for units that only carry rows of the table into new files: no model is asked for.

        `limit_s` is how long nothing may go forward.
        """


class InlineExecutor:
    """Units inside this process, one after the other; the model is loaded when the first text needs it."""

    def __init__(self) -> None:
        threads = os.cpu_count() or 1
        self.pool = Pool(replicas=1, gpus=0.0, cpus=threads, threads=threads, io_cpus=1.0, device="cpu")
        self.book: Book = NoBook()
        for name, value in LEAN.items():
            os.environ.setdefault(name, value)  # oneDNN asks at the first product

    def run(self, units: Iterable[Unit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """See `Executor`."""
        encode = EncodeStage(spec, self.book, self.pool.threads, self.pool.device)
        for unit in units:
            yield opened(write(encode(read_and_tokenize(to_block(unit), spec, self.book)), spec, self.book))

    def rewrite(self, units: Iterable[Unit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """See `Executor`."""
        for unit in units:
            yield opened(rewrite(to_block(unit), spec, self.book, limit_s))


def executor_for(run: Run) -> Executor:
    """What a job asks for.

    Raises:
        ConfigError: there is no such cluster, or it is too small.
    """
    if run.address == "inline":
        return InlineExecutor()
    from pipeline.dataflow import RayExecutor  # ray takes seconds to import: only where it is used

    return RayExecutor(run)


def near_or(address: str, *, little: bool) -> Executor | None:
    """This process, where there is little to do and the choice is ours; None otherwise."""
    here = address == "inline" or (little and address == "auto" and "RAY_ADDRESS" not in os.environ)
    return InlineExecutor() if here else None
