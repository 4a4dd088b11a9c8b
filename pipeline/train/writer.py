"""Writes the rows of a source, and keeps their hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.source.content_hash import content_hashes
from pipeline.train.data import HASH, PASSAGE, QUERY, ROWS_FILE, TEXT, TEXTS_FILE, Ints, text_hashes

TEXTS = pa.schema([(TEXT, pa.string()), (TEXT + HASH, pa.int64())])


@dataclass(frozen=True)
class Found:
    """What is in memory of the rows of a source.

    Attributes:
        query, passage: Text hashes, int64 [rows].
        key: Hashes of the ids of the rows, int64 [rows]; empty without mined negatives.
        positive: Hashes of the ids of the passages in the mined table, int64 [rows]; empty unless they were mined by id.
        row: Row of each negative, int64 [negatives], ascending.
        number: Its number; see `pipeline.train.data`.
        hash: Hash of its text.
    """

    query: Ints
    passage: Ints
    key: Ints
    positive: Ints
    row: Ints
    number: Ints
    hash: Ints

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.query)

    def select(self, keep: npt.NDArray[np.bool_]) -> Found:
        """Return some of the rows, with their negatives."""
        of_kept = keep[self.row]
        return replace(
            self,
            query=self.query[keep],
            passage=self.passage[keep],
            key=self.key[keep[: len(self.key)]],
            positive=self.positive[keep[: len(self.positive)]],
            row=(np.cumsum(keep) - 1)[self.row[of_kept]],
            number=self.number[of_kept],
            hash=self.hash[of_kept],
        )


@dataclass(frozen=True)
class Part:
    """Rows that can be used.

    Attributes:
        rows: Columns `query`, `passage`, their hashes, and `label` if there is one.
        digests: Content hashes of query and passage, 32 hex digits.
        key, positive: As in `Found`.
        row: Row of each negative in the part.
        negatives: Texts of the negatives.
    """

    rows: pa.Table
    digests: tuple[pa.Array, pa.Array]
    key: Ints
    positive: Ints
    row: Ints
    negatives: pa.Array


class Writer:
    """Writer of the rows of one source.

    Args:
        folder: Folder of the files.
        held_out: Content hashes of texts that must be in no pair.
        leaked: Pairs that have one, by the first such text.
    """

    def __init__(self, folder: Path, held_out: Collection[bytes], leaked: Counter[str]) -> None:
        self._folder, self._leaked = folder, leaked
        self._held_out = pa.array(sorted(each.hex() for each in held_out), pa.string())
        self._streams: dict[str, pa.RecordBatchStreamWriter] = {}
        self._arrays: list[list[Ints]] = []
        self._rows = self._texts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def write(self, part: Part) -> None:
        """Append rows."""
        self._check(part)
        self._write(ROWS_FILE, part.rows)
        hashes = text_hashes(content_hashes(part.negatives))
        if len(hashes):
            self._write(TEXTS_FILE, pa.table([part.negatives, hashes], schema=TEXTS))
        numbers = np.arange(self._texts, self._texts + len(hashes))
        sides = (part.rows[QUERY + HASH].to_numpy(), part.rows[PASSAGE + HASH].to_numpy())
        self._arrays.append([*sides, part.key, part.positive, part.row + self._rows, numbers, hashes])
        self._rows += part.rows.num_rows
        self._texts += len(hashes)

    def found(self) -> Found:
        """Return the hashes and numbers of all rows."""
        empty = [[np.zeros(0, np.int64)] * 7]
        return Found(*(np.concatenate(arrays) for arrays in zip(*(self._arrays or empty), strict=True)))

    def _check(self, part: Part) -> None:
        if not len(self._held_out):
            return
        first, second = (
            pc.is_in(digests, value_set=self._held_out).to_numpy(zero_copy_only=False) for digests in part.digests
        )
        if count := int((first | second).sum()):
            row = int(np.argmax(first | second))
            self._leaked[part.rows[QUERY if first[row] else PASSAGE][row].as_py()] += count

    def _write(self, file: str, rows: pa.Table) -> None:
        if file not in self._streams:
            self._streams[file] = pa.ipc.new_stream(str(self._folder / file), rows.schema)
        self._streams[file].write_table(rows)


def keep_rows(path: Path, keep: npt.NDArray[np.bool_]) -> None:
    """Rewrite an Arrow stream with some of its rows."""
    part = path.with_suffix(".part")
    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream, pa.ipc.new_stream(str(part), stream.schema) as kept:
        row = 0
        for batch in stream:
            kept.write_batch(batch.filter(pa.array(keep[row : row + batch.num_rows])))
            row += batch.num_rows
    part.replace(path)
