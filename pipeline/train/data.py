"""Training data on disk: memory-mapped rows of each source, as `pipeline.train.prepare` writes them.

A source is a folder of Arrow streams that `datasets` maps into memory. A negative is stored as a number: n >= 0 is row n of
`negatives.arrow`, and -1 - n is the passage of row n. So a text is stored once, however many rows have it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset

QUERY, PASSAGE, LABEL = "query", "passage", "label"
NEGATIVES = "negatives"  # column of numbers, list<int64>
HASH = "_text_hash"  # end of a column of text hashes
TEACHER = "_teacher"  # end of a column of rows of the teacher's vectors
ROWS_FILE, NEGATIVES_FILE, TEACHER_FILE, DATA_FILE = "rows.arrow", "negatives.arrow", "teacher.npy", "data.json"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One source of training rows.

    Attributes:
        name: Its name in logs and in the table of losses.
        folder: Folder of its files.
        weight: Times that each of its rows is used in an epoch, on average.
        loss: Name of its loss.
        negatives: Negatives of each row.
        rows: Number of rows.
        label: "number", "class" or None: the kind of the column `label`.
        teacher_width: Width of the teacher's vectors; 0 if there are none.
    """

    name: str
    folder: Path
    weight: float
    loss: str
    negatives: int
    rows: int
    label: str | None = None
    teacher_width: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts, in the order of the losses: query, passage, negative_1, ..."""
        return (QUERY, PASSAGE, *(f"negative_{number}" for number in range(1, self.negatives + 1)))

    @cached_property
    def dataset(self) -> Dataset:
        """The rows: query, passage, their hashes, and negatives, label and rows of the teacher where there are some."""
        return _mapped(self.folder / ROWS_FILE)

    @cached_property
    def _negatives(self) -> Dataset:
        return _mapped(self.folder / NEGATIVES_FILE)

    @cached_property
    def _teacher(self) -> npt.NDArray[np.float32]:
        vectors: npt.NDArray[np.float32] = np.load(self.folder / TEACHER_FILE, mmap_mode="r")
        return vectors

    def hashes(self, column: str) -> Ints:
        """Return the text hashes of `query` or `passage`, int64 [rows]."""
        return np.asarray(self.dataset.data.column(column + HASH).to_numpy(), np.int64)

    def take(self, rows: Sequence[int] | Ints) -> pa.Table:
        """Return some rows with their texts: the columns of `columns`, each with its hash, `label` if there is one.

        The teacher's vectors of query and passage are columns `query_teacher` and `passage_teacher`, list<float32>.
        """
        found = self.dataset[np.asarray(rows)]
        columns = {name: found[name] for name in (QUERY, PASSAGE, QUERY + HASH, PASSAGE + HASH)}
        if self.negatives:
            numbers = found[NEGATIVES].combine_chunks().flatten().to_numpy().reshape(-1, self.negatives)
            for number, name in enumerate(self.columns[2:]):
                texts = self._texts(numbers[:, number])
                columns |= {name: texts["text"], name + HASH: texts["hash"]}
        if self.label is not None:
            columns[LABEL] = found[LABEL]
        if self.teacher_width:
            for name in (QUERY, PASSAGE):
                vectors = self._teacher[found[name + TEACHER].to_numpy()]
                columns[name + TEACHER] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), self.teacher_width)
        return pa.table(columns)

    def _texts(self, numbers: Ints) -> pa.Table:
        """Return the texts of negatives, by their numbers, in their order."""
        own = numbers >= 0
        parts = []
        if own.any():
            parts.append(self._negatives[numbers[own]])
        if not own.all():
            passages = self.dataset.select_columns([PASSAGE, PASSAGE + HASH])[-1 - numbers[~own]]
            parts.append(passages.rename_columns(["text", "hash"]))
        order = np.empty(len(numbers), np.int64)
        order[np.concatenate([np.flatnonzero(own), np.flatnonzero(~own)])] = np.arange(len(numbers))
        return pa.concat_tables(parts).take(pa.array(order))


@dataclass(frozen=True)
class TrainingData:
    """Data of a training job.

    Attributes:
        sources: The sources, in the order of the job.
        folder: Folder of the files; `open_data` opens it.
        counts: For each source: rows that were read and kept, those that were left out by reason, and padded negatives.
    """

    sources: tuple[Source, ...]
    folder: Path
    counts: dict[str, dict[str, int]]


def open_data(folder: Path) -> TrainingData:
    """Open data that `prepare` has written."""
    data = json.loads((folder / DATA_FILE).read_bytes())
    sources = (Source(**{**each, "folder": folder / each["folder"]}) for each in data["sources"])
    return TrainingData(tuple(sources), folder, data["counts"])


def describe_data(data: TrainingData) -> dict[str, Any]:
    """Return the content of `DATA_FILE`."""
    sources = [{**asdict(source), "folder": source.folder.name} for source in data.sources]
    return {"sources": sources, "counts": data.counts}


def _mapped(path: Path) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("arrow")
