"""What each Ray Data stage does with a unit: read and tokenize, encode, write.

Wrapped around the plain classes of `actors` by `dataflow`. A unit that fails does not end the run: its error travels on
in the parcel, every other unit is finished and keeps its receipt, and the driver reports at the end. Torch is imported
in the encode stage alone: a reader or writer that loads it would cost each worker process seconds.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.errors import InvariantBroken, VectideError
from actors.parcel import Parcel, pack, unpack
from actors.reader import TEXT, SourceSpec, read_unit
from actors.schema import EMBEDDING, HASH, INPUT_IDS, TASK, TOKENS, BadRow, Unit
from actors.tokenizer import Tokenizer
from actors.writer import WriterSpec, write_unit
from pipeline.attempts import AttemptBook, Lease

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

OUTCOME_SCHEMA = pa.schema([("unit", pa.int64()), ("outcome", pa.binary())])


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything that the stages of a run need, small enough to travel with each task."""

    source: SourceSpec
    model: ModelSpec
    writer: WriterSpec


@lru_cache(maxsize=2)
def _tokenizer(model: ModelSpec) -> Tokenizer:
    """One tokenizer a process, however many units it reads."""
    return Tokenizer(model)


def to_block(unit: Unit) -> pa.Table:
    """A unit as the first stage takes it."""
    return pa.table({"unit": [unit.number], "payload": [pickle.dumps(unit)]})


def read_and_tokenize(block: pa.Table, spec: StageSpec, book: AttemptBook) -> pa.Table:
    """Read a unit and turn its texts into token ids."""
    unit: Unit = pickle.loads(block.column("payload")[0].as_py())  # noqa: S301  (made by our own driver)
    parcel = Parcel(unit.number)
    lease = book.lease("read", unit.number)
    try:
        lease.check()
        started = time.perf_counter()
        result = read_unit(unit, spec.source)
        parcel.bad = list(result.bad)
        parcel.rows_read = result.rows_read
        table = result.table
        tasks = table.column(TASK).to_pylist() if TASK in table.column_names else None
        read_s = time.perf_counter()
        tokens = _tokenizer(spec.model).tokenize(table.column(TEXT).to_pylist(), tasks)
        lengths = pc.list_value_length(tokens.ids)
        if TEXT not in spec.writer.schema.names:
            table = table.drop_columns([TEXT])
        table = table.append_column(INPUT_IDS, tokens.ids).append_column(TOKENS, lengths)
        parcel.table = table
        parcel.counts = {
            "documents": table.num_rows,
            "tokens": int(pc.sum(lengths).as_py() or 0),
            "truncated": int(np.count_nonzero(tokens.truncated)),
        }
        parcel.seconds = {"read": read_s - started, "tokenize": time.perf_counter() - read_s}
    except VectideError as error:
        parcel.error = error
    lease.done()
    return pack(parcel)


@dataclass(slots=True)
class _Work:
    """The distinct texts of a unit, and what became of them.

    Attributes:
        vectors: float32 [texts, dim].
        failed: Text to reason and error.
    """

    ids: pa.ListArray
    tasks: list[str] | None
    vectors: npt.NDArray[np.float32]
    failed: dict[int, tuple[str, str]]


class EncodeStage:
    """The encoder in its pool. Ray Data makes one of these in each actor.

    Args:
        spec: The run's settings.
        book: Who died on what, kept outside this process.
        threads: CPU threads for this replica.
        device: "cpu", "cuda" or "auto".
    """

    def __init__(self, spec: StageSpec, book: AttemptBook, threads: int | None, device: str) -> None:
        from actors.encoders import load_encoder

        self.book = book
        self.encoder: Encoder = load_encoder(spec.model, device=device, threads=threads)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Vectors for a unit, in the order of its rows."""
        parcel = unpack(block)
        if parcel.error is not None or parcel.table is None:
            return block
        started = time.perf_counter()
        try:
            self._encode(parcel)
        except VectideError as error:
            parcel.error, parcel.table = error, None
        parcel.seconds["encode"] = time.perf_counter() - started
        return pack(parcel)

    def _encode(self, parcel: Parcel) -> None:
        """Put the embedding column in; rows that cannot be encoded go to `parcel.bad`.

        Texts that occur more than once in a unit are encoded once.
        """
        table = parcel.table
        if table is None:
            raise InvariantBroken(f"unit {parcel.unit} came to the encoder without rows.")
        firsts, inverse = _distinct(table)
        ids = table.column(INPUT_IDS).combine_chunks().take(firsts)
        tasks = table.column(TASK).take(firsts).to_pylist() if TASK in table.column_names else None
        work = _Work(ids, tasks, np.zeros((len(ids), self.encoder.dim), dtype=np.float32), {})
        lease = self.book.lease("encode", parcel.unit)
        self._encode_range(work, 0, len(ids), lease)
        lease.done()
        keep = np.ones(table.num_rows, dtype=bool)
        if work.failed:
            columns = [table.column(name).to_pylist() for name in ("_shard", "_position", "id")]
            for row in np.flatnonzero(np.isin(inverse, list(work.failed))):
                reason, error = work.failed[int(inverse[row])]
                shard, position, name = (column[row] for column in columns)
                parcel.bad.append(BadRow(shard, position, name, reason, error))
                keep[row] = False
        parcel.counts["encoded"] = len(ids) - len(work.failed)
        table = table.drop_columns([INPUT_IDS])
        flat = pa.array(work.vectors[inverse].reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self.encoder.dim)
        table = table.append_column(EMBEDDING, column)
        parcel.table = table if keep.all() else table.filter(pa.array(keep))
        parcel.counts["documents"] = parcel.table.num_rows

    def _encode_range(self, work: _Work, low: int, high: int, lease: Lease) -> None:
        """Encode rows `low` to `high`, halving around rows that raise or that have killed a process before."""
        if low >= high:
            return
        span = (low, high)
        if lease.fatal(span):
            work.failed[low] = ("killed_process", f"the process died {lease.deaths(span)} times on this row")
            return
        if not lease.suspect(span):
            with lease.trying(span):
                try:
                    part = work.tasks[low:high] if work.tasks is not None else None
                    work.vectors[low:high] = self.encoder.encode_tokens(work.ids.slice(low, high - low), part)
                    return
                except VectideError as error:
                    if isinstance(error, InvariantBroken):
                        raise
                    reason = str(error)
                except (RuntimeError, ValueError, IndexError) as error:
                    reason = f"{type(error).__name__}: {error}"
                if high - low == 1:
                    work.failed[low] = ("encode_failed", reason[:500])
                    return
        middle = (low + high) // 2
        self._encode_range(work, low, middle, lease)
        self._encode_range(work, middle, high, lease)


def _distinct(table: pa.Table) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Row of the first sight of each content hash, and for each row which of those it is."""
    codes = table.column(HASH).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return pa.array(firsts), inverse.astype(np.int64)


def write(block: pa.Table, spec: StageSpec, book: AttemptBook) -> pa.Table:
    """Write a unit; the driver gets its receipt, or the error that it ended with."""
    parcel = unpack(block)
    outcome: object = parcel.error
    if parcel.error is None:
        lease = book.lease("write", parcel.unit)
        try:
            lease.check()
            outcome = write_unit(parcel, spec.writer)
        except VectideError as error:
            outcome = error
        lease.done()
    return pa.table({"unit": [parcel.unit], "outcome": [pickle.dumps(outcome)]}, schema=OUTCOME_SCHEMA)
