"""The vectors that a teacher's table of embeddings has of the texts of a source, found by content hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors import storage
from actors.errors import ConfigError, DataError
from actors.schema import CHUNK
from actors.schema import HASH as CONTENT_HASH
from actors.vectors import VectorColumn
from pipeline.scan.table_scan import TableScan
from pipeline.table import delta_table
from pipeline.train.data import TEACHER_FILE, TEACHER_OF_FILE, text_hashes
from pipeline.train.writer import Found


class Teacher:
    """A teacher's table.

    Args:
        uri: URL of the table.
        key: Key of the job, for messages.

    Attributes:
        width: Width of its vectors.

    Raises:
        ConfigError: it has no single vector of a text.
        TableConflict: it is no table of embeddings.
    """

    def __init__(self, uri: str, key: str) -> None:
        self._name = f"{key} {uri!r}"
        table = delta_table.need_table(storage.absolute(uri))
        spec = delta_table.embedding_spec_of(table)
        self._scan = TableScan(table, () if spec is None else spec.outputs, None)
        if self._scan.dense is None or CHUNK in self._scan.schema.names:
            raise ConfigError(
                f"{self._name} has no single vector of each text; name a table of embeddings without chunks"
            )
        self._dense: VectorColumn = self._scan.dense
        self.width = self._dense.dim

    def write(self, found: Found, folder: Path) -> npt.NDArray[np.bool_]:
        """Write the vectors of the rows whose texts are both in the table; return which rows these are, bool [rows].

        Raises:
            DataError: there is no such row.
        """
        wanted, place = np.unique(np.concatenate([found.query, found.passage]), return_inverse=True)
        vectors = np.lib.format.open_memmap(folder / TEACHER_FILE, "w+", np.float32, (len(wanted), self.width))
        has = np.zeros(len(wanted), bool)
        for part in self._scan.columns([CONTENT_HASH, self._dense.name]):
            hashes = text_hashes(part[CONTENT_HASH])
            at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            rows = np.flatnonzero((wanted[at] == hashes) & ~has[at])
            values = self._dense.matrix(part[self._dense.name].take(pa.array(rows)).combine_chunks())
            at = at[rows][np.isfinite(values).all(axis=1)]
            vectors[at] = values[np.isfinite(values).all(axis=1)]
            has[at] = True
        vectors.flush()
        of_rows = place.reshape(2, -1).T
        kept = np.asarray(has[of_rows].all(axis=1))
        if not kept.any():
            raise DataError(
                f"{self._name} has the vectors of both texts of none of {found.rows:,} rows; embed queries and passages of this "
                f"source with the teacher"
            )
        np.save(folder / TEACHER_OF_FILE, of_rows[kept])
        return kept
