"""Result of an evaluation: scores with intervals, and differences to the first row.

Each row is a model, a version or a form of its vectors. Every row has a value for each item (a query, a pair, a triplet),
so two rows are compared on the same items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from pipeline.quality.bootstrap import (
    Difference,
    Interval,
    Score,
    Values,
    mean_difference,
    mean_interval,
    score_difference,
    score_interval,
)
from pipeline.quality.metrics import spearman


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of a model, a version or a form of vectors.

    Attributes:
        task: Task of the model with which it was measured, if there are several rows for that.
        bytes_per_vector: Size of a vector; None if the vectors are as the table or the model gives them.
        scores: By measure.
        differences: To the first row with the same task, by measure; empty for that row.
    """

    label: str
    task: str | None
    bytes_per_vector: float | None
    scores: dict[str, Interval]
    differences: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A measure of one row by two properties of its items.

    Attributes:
        label: Label of the row.
        axes: Names of the properties of rows and columns.
        rows, columns: Values of the properties.
        cells: The measure, a list for each row; None where there are no items.
    """

    label: str
    measure: str
    axes: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]

    @property
    def title(self) -> str:
        """A line above the matrix."""
        return f"{self.label}: {self.measure}; rows: {self.axes[0]}, columns: {self.axes[1]}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        ability: "retrieval", "sts", "negation", "alignment", "cross-language retrieval" or "needle at depth".
        of: What was evaluated.
        items: Number of queries, pairs or triplets.
        main: The measure to look at first.
        notes: Sentences about what does not count, or not as one may think.
        matrices: The measures of each row in detail; none for most abilities.
    """

    ability: str
    of: str
    items: int
    main: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    matrices: tuple[Matrix, ...] = ()


def write_result(folder: str, of: str, result: dict[str, Any]) -> None:
    """Write a result as `evaluation.json` and as the page `report.html`.

    Args:
        folder: URL of a folder; made if it is missing.
        of: What was evaluated.
        result: The result as plain data.
    """
    from pipeline.report.page import render_evaluation

    place, text = storage.absolute(folder), json.dumps(result, indent=2, ensure_ascii=False)
    storage.put(storage.join(place, "evaluation.json"), text.encode())
    storage.put(storage.join(place, "report.html"), render_evaluation(of, result).encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class Measured:
    """Values of one row.

    Attributes:
        values: A value for each item, by measure.
        truth: Values that a measure is correlated with; None: its score is the mean of the values.
    """

    label: str
    values: Mapping[str, Values]
    task: str | None = None
    bytes_per_vector: float | None = None
    truth: Values | None = None

    @cached_property
    def correlations(self) -> dict[str, Score]:
        """Functions that compute the correlations with the truth, by measure."""
        return {} if self.truth is None else {name: spearman(each, self.truth) for name, each in self.values.items()}

    def row(self, first: Measured | None) -> Row:
        """Return the scores, and the differences to the first row if this is another one."""
        scores, differences = {}, {}
        for name, each in self.values.items():
            correlation = self.correlations.get(name)
            scores[name] = mean_interval(each) if correlation is None else score_interval(correlation, len(each))
            if first is None:
                continue
            differences[name] = (
                mean_difference(each, first.values[name])
                if correlation is None
                else score_difference(correlation, first.correlations[name], len(each))
            )
        return Row(self.label, self.task, self.bytes_per_vector, scores, differences)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation with the value of each item.

    Attributes:
        items: Names of the items.
    """

    ability: str
    of: str
    main: str
    items: Sequence[str]
    measured: Sequence[Measured]
    notes: tuple[str, ...] = field(default=())
    matrices: tuple[Matrix, ...] = field(default=())

    def result(self) -> Evaluation:
        """Return the scores of all rows."""
        firsts: dict[str | None, Measured] = {}
        rows = []
        for each in self.measured:
            first = firsts.setdefault(each.task, each)
            rows.append(each.row(None if first is each else first))
        return Evaluation(self.ability, self.of, len(self.items), self.main, tuple(rows), self.notes, self.matrices)

    def write(self, folder: str, result: Evaluation) -> None:
        """Write the result as `evaluation.json` and `report.html`, and the value of each item as `values.parquet`.

        Args:
            folder: URL of a folder; made if it is missing.
            result: What `result` returned.
        """
        write_result(folder, result.of, dataclasses.asdict(result))
        count = len(self.items)
        parts = [
            pa.table(
                {
                    "row": pa.array([each.label] * count, pa.string()),
                    "task": pa.array([each.task] * count, pa.string()),
                    "item": pa.array(self.items, pa.string()),
                    **{name: pa.array(values, pa.float64()) for name, values in each.values.items()},
                }
            )
            for each in self.measured
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(parts), sink, compression="zstd")
        storage.put(storage.join(storage.absolute(folder), "values.parquet"), bytes(sink.getvalue()))
