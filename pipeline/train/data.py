"""Training data on disk: memory-mapped rows of each source, as `pipeline.train.prepare` writes them.

A source is a folder of files that are mapped into memory:

    rows.arrow      query, passage, their hashes, and the label where there is one
    negatives.npy   int64 [rows, negatives]: n >= 0 is row n of texts.arrow, and -1 - n is the passage of row n
    texts.arrow     text and hash of the negatives that are no passages
    teacher.npy     float32 [texts, width], the teacher's vectors
    teacher_of.npy  int64 [rows, 2], the rows of teacher.npy with the vectors of query and passage

So a text is stored once, however many rows have it as a negative.
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
HASH = "_text_hash"  # end of a column of text hashes
TEACHER = "_teacher"  # end of a column of the teacher's vectors
TEXT = "text"
ROWS_FILE, NEGATIVES_FILE, TEXTS_FILE = "rows.arrow", "negatives.npy", "texts.arrow"
TEACHER_FILE, TEACHER_OF_FILE = "teacher.npy", "teacher_of.npy"
DATA_FILE = "data.json"

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
        teacher: Width of the teacher's vectors; 0 if there are none.
    """

    name: str
    folder: Path
    weight: float
    loss: str
    negatives: int
    rows: int
    label: str | None = None
    teacher: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts, in the order of the losses: query, passage, negative_1, ..."""
        return (QUERY, PASSAGE, *(f"negative_{number}" for number in range(1, self.negatives + 1)))

    @cached_property
    def dataset(self) -> Dataset:
        """The rows: query, passage, their hashes, and the label."""
        return _mapped(self.folder / ROWS_FILE)

    @cached_property
    def _texts(self) -> Dataset:
        return _mapped(self.folder / TEXTS_FILE)

    @cached_property
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        names = [NEGATIVES_FILE] * bool(self.negatives) + [TEACHER_FILE, TEACHER_OF_FILE] * bool(self.teacher)
        return {name: np.load(self.folder / name, mmap_mode="r") for name in names}

    def hashes(self, column: str) -> Ints:
        """Return the text hashes of `query` or `passage`, int64 [rows]."""
        return np.asarray(self.dataset.data.column(column + HASH).to_numpy(), np.int64)

    def take(self, rows: Sequence[int] | Ints) -> pa.Table:
        """Return some rows: the texts of `columns`, a hash of each, as `query_text_hash`, and `label` if there is one.

        With a teacher also its vectors of query and passage, as `query_teacher`, fixed_size_list<float>.
        """
        rows = np.asarray(rows)
        found = self.dataset[rows]
        columns = {name: found[name] for name in found.column_names}
        for place, name in enumerate(self.columns[2:]):
            texts = self._negatives(self._arrays[NEGATIVES_FILE][rows, place])
            columns |= {name: texts[TEXT], name + HASH: texts[TEXT + HASH]}
        for place, name in enumerate((QUERY, PASSAGE) if self.teacher else ()):
            vectors = self._arrays[TEACHER_FILE][self._arrays[TEACHER_OF_FILE][rows, place]]
            columns[name + TEACHER] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), self.teacher)
        return pa.table(columns)

    def _negatives(self, numbers: Ints) -> pa.Table:
        """Return texts and hashes of negatives by their numbers, in their order."""
        own, order = numbers >= 0, np.argsort(numbers < 0, kind="stable")
        parts = [self._texts[numbers[own]]] if own.any() else []
        if not own.all():
            passages = self.dataset[-1 - numbers[~own]].select([PASSAGE, PASSAGE + HASH])
            parts.append(passages.rename_columns([TEXT, TEXT + HASH]))
        return pa.concat_tables(parts).take(pa.array(np.argsort(order)))


@dataclass(frozen=True)
class TrainingData:
    """Data of a training job.

    Attributes:
        sources: The sources, in the order of the job.
        folder: Folder of the files; `open_data` opens it.
        digest: Hash of the files of all sources.
        counts: For each source: rows that were read and kept, those that were left out by reason, and padded negatives.
    """

    sources: tuple[Source, ...]
    folder: Path
    digest: str
    counts: dict[str, dict[str, int]]


def open_data(folder: Path) -> TrainingData:
    """Open data that `prepare` has written."""
    data = json.loads((folder / DATA_FILE).read_bytes())
    sources = (Source(**{**each, "folder": folder / each["folder"]}) for each in data["sources"])
    return TrainingData(tuple(sources), folder, data["digest"], data["counts"])


def write_data(data: TrainingData) -> None:
    """Write the file that makes a folder of sources complete."""
    sources = [{**asdict(source), "folder": source.folder.name} for source in data.sources]
    content = {"sources": sources, "digest": data.digest, "counts": data.counts}
    (data.folder / DATA_FILE).write_text(json.dumps(content, indent=2))


def text_hashes(hashes: pa.Array | pa.ChunkedArray) -> Ints:
    """Return the first 8 bytes of content hashes (32 hex digits each) as int64 [n]."""
    digits = "".join(hashes.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), np.int64)[::2].copy()


def _mapped(path: Path) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("arrow")
