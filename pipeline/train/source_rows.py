"""Reads the rows of a source in parts, and leaves out those that cannot be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.schema import CONTENT
from actors.schema import HASH as CONTENT_HASH
from actors.source.blank import blank_rows
from actors.source.content_hash import content_hashes
from actors.source.formats.types import is_text
from pipeline.job.training import Training
from pipeline.job.validation import shown
from pipeline.plan.rows import Columns, column_types, is_table, read_rows
from pipeline.train.data import HASH, LABEL, PASSAGE, QUERY, Ints, text_hashes
from pipeline.train.mining import Mining
from pipeline.train.where import Where
from pipeline.train.writer import Part

_ROWS = 8192  # of a part
_KEPT = "kept"
_SCORED = ("cosent", "pearson")
WITH_NEGATIVES = ("infonce", "classification")
_NEGATIVE = re.compile("negatives?|negative_[0-9]+")


class Reader:
    """Reader of one source.

    Args:
        job: The job.
        number: Number of the source.

    Attributes:
        mining: The mining of its negatives; None if there is none.
        label_kind: See `pipeline.train.data.Source`.
        read: Rows that were read.
        left_out: Rows and negatives that cannot be used, by reason.

    Raises:
        ConfigError: the source is not there, a column is missing or of a wrong type, or the condition is none.
    """

    def __init__(self, job: Training, number: int) -> None:
        self._source = source = job.data[number]
        self.name = f"data.{number}"
        self.read, self.left_out = 0, Counter[str]()
        self._classes: dict[str, int] = {}
        self._is_list: dict[str, bool] = {}
        self.mining = None if source.negatives is None else Mining.of(source.negatives, f"{self.name}.negatives")
        with self._naming():
            self._types = column_types(source.uri, format=source.format)
        if not self._types:
            raise ConfigError(f"{self.name}.uri {source.uri!r} has no rows; name files with pairs")
        scored = source.loss in _SCORED
        self.label_kind = "number" if scored else None if source.label is None else "class"
        self._label = source.score if scored else source.label
        self._need("query", source.query)
        self._need("passage", source.passage)
        if self._label is not None:
            self._need("score" if scored else "label", self._label)
        self._negatives = self._negative_columns()
        is_curated = is_table(source.uri) and pa.types.is_boolean(self._types.get(_KEPT, pa.null()))
        is_default = source.where is None or (is_curated and source.where.strip().lower() == _KEPT)
        self._where = None if is_default else Where(str(source.where), self._types, f"{self.name}.where")
        self._verdicts = self._where is None or _KEPT not in self._where.columns

    def parts(self) -> Iterator[Part]:
        """Yield the rows that can be used.

        Raises:
            DataError: a score is no number, or a file cannot be read.
        """
        source, mining = self._source, self.mining
        ids = [] if mining is None or mining.passage_id is None else [mining.passage_id]
        kept = [*self._negatives, *([] if self._label is None else [self._label]), *ids]
        kept += [] if self._where is None else self._where.columns
        columns = Columns(
            (source.passage,),
            others=(source.query, *ids),
            ids=ids,
            id=None if mining is None else mining.id,
            kept=[name for name in dict.fromkeys(kept) if name not in ids],
        )
        with self._naming():
            for part in read_rows(source.uri, columns, format=source.format, verdicts=self._verdicts):
                self.read += part.rows.num_rows + part.bad.total()
                self.left_out.update({f"left out: {reason}": count for reason, count in part.bad.items()})
                whole = part.rows.append_column(_KEY, part.ids)
                for start in range(0, whole.num_rows, _ROWS):
                    if (rows := self._usable(whole.slice(start, _ROWS))).num_rows:
                        yield self._part(rows)

    def _usable(self, rows: pa.Table) -> pa.Table:
        """Return the rows that meet the condition, with a query and a label."""
        if self._where is not None:
            rows = self._without(rows, self._where.select(rows), "where")
        blank = np.zeros(rows.num_rows, bool)
        blank[blank_rows(_one(rows[self._source.query]))] = True
        rows = self._without(rows, rows.filter(pa.array(~blank)), "blank query")
        if self._label is None:
            return rows
        values = self._numbers(rows) if self.label_kind == "number" else self._numbers_of_classes(rows)
        rows = rows.append_column(_LABEL, values)
        return self._without(rows, rows.filter(values.is_valid()), f"no {self._label}")

    def _without(self, rows: pa.Table, left: pa.Table, reason: str) -> pa.Table:
        """Return the rows that are left, and count the others."""
        if lost := rows.num_rows - left.num_rows:
            self.left_out[f"left out: {reason}"] += lost
        return left

    def _part(self, rows: pa.Table) -> Part:
        """Return rows with their hashes and negatives."""
        query, passage = _one(rows[self._source.query]), _one(rows[CONTENT])
        digests = (content_hashes(query), _one(rows[CONTENT_HASH]))
        columns = {QUERY: query, PASSAGE: passage}
        columns |= {QUERY + HASH: text_hashes(digests[0]), PASSAGE + HASH: text_hashes(digests[1])}
        if self._label is not None:
            columns[LABEL] = rows[_LABEL]
        none = np.zeros(0, np.int64)
        key = none if self.mining is None else text_hashes(content_hashes(_one(rows[_KEY])))
        by_id = None if self.mining is None else self.mining.passage_id
        positive = none if by_id is None else text_hashes(content_hashes(_one(rows[by_id])))
        return Part(pa.table(columns), digests, key, positive, *self._texts_of_negatives(rows))

    def _texts_of_negatives(self, rows: pa.Table) -> tuple[Ints, pa.Array]:
        """Return the row and the text of each negative in columns, those of a row in the order of the columns."""
        places, texts = [np.zeros(0, np.int64)], [pa.array([], pa.string())]
        for name in self._negatives:
            column = _one(rows[name])
            if is_text(column.type):
                column = self._lists(name, column.cast(pa.string()))
            if _is_list(column.type):
                place, text = pc.list_parent_indices(column), pc.list_flatten(column)
            else:
                place, text = pa.array(np.arange(len(column))), column
            text = text.cast(pa.string())
            places.append(place.filter(text.is_valid()).to_numpy().astype(np.int64))
            texts.append(text.drop_null())
        place, text = np.concatenate(places), pa.concat_arrays(texts)
        good = np.ones(len(place), bool)
        good[blank_rows(text)] = False
        if not good.all():
            self.left_out["negatives left out: blank"] += int((~good).sum())
        order = np.flatnonzero(good)
        order = order[np.argsort(place[order], kind="stable")]
        return place[order], text.take(pa.array(order))

    def _lists(self, name: str, column: pa.Array) -> pa.Array:
        """Return a column of JSON lists as lists, and one of texts as it is.

        JSON Lines and CSV have no columns of lists; their values are texts. The first values decide which of them it is.
        """
        values: list[str | None] = column.to_pylist()
        if name not in self._is_list and any(values):
            given = [value for value in values if value]
            listed = [value for value in given if _list(value) is not None]
            self._is_list[name] = len(listed) == len(given)
            if not self._is_list[name] and listed:
                self.left_out[f"lists in {name!r} taken as texts, because other rows have none"] += len(listed)
            others = [value for value in listed if _strings(value) is None]
            if self._is_list[name] and others:
                raise DataError(
                    f"{self.name}: the column {name!r} has lists of something else than texts, such as {shown(others[0])}; write "
                    f"lists of texts, or name other columns in negative_columns"
                )
        if not self._is_list.get(name, False):
            return column
        lists = [_strings(value) if value else [] for value in values]
        if wrong := lists.count(None):
            self.left_out["negatives left out: no list of texts"] += wrong
        return pa.array([each or [] for each in lists], pa.list_(pa.string()))

    def _numbers(self, rows: pa.Table) -> pa.Array:
        """Return the scores as float32; null where there is none."""
        column = _one(rows[self._label])
        if is_text(column.type):
            column = pc.utf8_trim_whitespace(column.cast(pa.string()))
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        try:
            values = column.cast(pa.float32(), safe=False)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.name}.score: the column {self._label!r} has a value that is no number: {error}. Correct it, or "
                f"leave such rows out with where"
            ) from None
        wrong = pc.invert(pc.fill_null(pc.is_finite(values), True)).to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{self.name}.score: the column {self._label!r} is {column[row].as_py()!r} in the row {rows[_KEY][row].as_py()!r}; a "
                f"score is a finite number. Correct it, or leave such rows out with where"
            )
        return values

    def _numbers_of_classes(self, rows: pa.Table) -> pa.Array:
        """Return the classes as numbers, in the order in which they appear; null where there is none."""
        column = _one(rows[self._label]).cast(pa.string())
        known = self._classes
        return pa.array(
            [known.setdefault(name, len(known)) if name and name.strip() else None for name in column.to_pylist()],
            pa.int64(),
        )

    def _need(self, key: str, column: str) -> None:
        """Raise ConfigError unless the source has a column, of a type that a key of the job allows."""
        if column not in self._types:
            raise ConfigError(
                f"{self.name}.{key} names the column {column!r}, which {self._source.uri!r} lacks; it has "
                f"{list(self._types)[:50]}"
            )
        kind = self._types[column]
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        wanted, fits = {
            "score": ("numbers", pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)),
            "label": ("texts or whole numbers", pa.types.is_integer(kind) or pa.types.is_boolean(kind)),
        }.get(key, ("texts", False))
        if not (fits or is_text(kind) or pa.types.is_null(kind)):
            raise ConfigError(
                f"{self.name}.{key} names the column {column!r}, which is {kind}; name a column of {wanted}"
            )

    def _negative_columns(self) -> list[str]:
        """Return the columns of negatives: those that the job names, or that have such a name."""
        source = self._source
        if source.loss not in WITH_NEGATIVES or source.negatives is not None:
            return []
        names = source.negative_columns or sorted(
            filter(_NEGATIVE.fullmatch, self._types), key=lambda name: (len(name), name)
        )
        for name in names:
            kind = self._types.get(name, pa.null())
            if not (_is_list(kind) and is_text(kind.value_type)):
                self._need("negative_columns", name)
        return list(names)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Turn the keys of a backfill's source in messages into those of the job."""
        try:
            yield
        except (ConfigError, DataError) as error:
            keys = {"uri": "uri", "format": "format", "text": "passage", "keep": "columns", "id": "id"}
            names: Mapping[str, str] = {f"source.{key}": f"{self.name}.{name}" for key, name in keys.items()}
            message = reduce(lambda text, name: text.replace(*name), names.items(), str(error))
            raise type(error)(message) from None


_KEY, _LABEL = "\0key", "\0label"  # no source column has such a name


def _strings(text: str) -> list[str] | None:
    """Return the strings of a JSON list, without nulls; None if the text is something else."""
    values = _list(text)
    if values is None:
        return None
    strings = [value for value in values if value is not None]
    return strings if all(isinstance(value, str) for value in strings) else None


def _list(text: str) -> list[Any] | None:
    """Return a JSON list; None if the text is something else."""
    if not text.lstrip().startswith("["):
        return None
    try:
        values: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return values


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks()
