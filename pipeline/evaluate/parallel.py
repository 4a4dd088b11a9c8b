"""Evaluates models by finding translations: a matrix over the languages of a parallel corpus.

Called by `vectide evaluate --parallel`. For each two languages, the text of a row in the one is the question, and the texts
of the other are what is searched. A measure of a row is the mean over its pairs of languages, so that rows can be drawn
again for intervals. The baseline is the share of words in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.source.blank import blank_rows
from actors.source.formats.types import is_text
from actors.vectors import Floats
from pipeline.evaluate.lexical import all_in_common
from pipeline.evaluate.result import Evaluated, Matrix, Measured
from pipeline.evaluate.texts import Form, Subject, forms_of, scored
from pipeline.quality.bootstrap import Values
from pipeline.quality.judged import read_columns
from pipeline.quality.metrics import MAIN, rank_values
from pipeline.run.routing import task_of

_OPTION = "--parallel"
_ID = "id"
_QUESTIONS = 1024  # scored at a time

Ints = npt.NDArray[np.int64]
# Returns the scores of some texts with all texts of a list, float [texts, list].
Scores = Callable[[Sequence[str], Sequence[str]], npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Aligned texts: by language, then by row, None where there is none.

    Attributes:
        rows: The rows that count, by the two languages, in both orders.
        notes: Sentences about what does not count.
    """

    texts: dict[str, list[str | None]]
    rows: dict[tuple[str, str], list[int]]
    notes: tuple[str, ...]

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Ordered pairs of languages that have rows."""
        return (pair for pair in permutations(self.texts, 2) if self.rows[pair])


def evaluate_parallel(
    url: str,
    subjects: Sequence[Subject],
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> Evaluated:
    """Measure how well models find the translation of a text, from each language to each other.

    Args:
        url: Parquet file with a column of texts for each language; the texts of a row mean the same.
        subjects: The models, the first of which the others are compared with.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: the file does not exist, or has fewer than two columns of texts; or a model has no dense vectors.
        DataError: no two languages have two different texts that are translated.
    """
    corpus, forms = _read(url), forms_of(subjects, dims, precisions)
    distinct = [*dict.fromkeys(text for column in corpus.texts.values() for text in column if text is not None)]
    count = len(next(iter(corpus.texts.values())))
    items = sorted({row for rows in corpus.rows.values() for row in rows})
    vectors = {
        each.name: each.encoder.encode(distinct, task_of(each.encoder.spec, "BitextMining")) for each in subjects
    }
    number = {text: place for place, text in enumerate(distinct)}
    words: Scores = all_in_common
    measured, matrices = [], []
    for label, size, scores in scored(forms, lambda form: _cosines(form, vectors[form.subject.name], number), words):
        sums, times = defaultdict[str, Values](lambda: np.zeros(count)), np.zeros(count)
        cells = defaultdict[str, dict[tuple[str, str], float]](dict)
        for pair in corpus.pairs:
            rows = corpus.rows[pair]
            first, second = ([str(corpus.texts[language][row]) for row in rows] for language in pair)
            times[rows] += 1
            for name, values in rank_values(_ranks(first, second, scores)).items():
                sums[name][rows] += values
                cells[name][pair] = float(np.mean(values))
        means = {name: values[items] / times[items] for name, values in sums.items()}
        measured.append(Measured(label, means, bytes_per_vector=size))
        matrices += [_matrix(label, name, tuple(corpus.texts), of_pairs) for name, of_pairs in cells.items()]
    of = " and ".join(subject.name for subject in subjects)
    return Evaluated(
        "cross-language retrieval", of, MAIN, [str(row) for row in items], measured, corpus.notes, tuple(matrices)
    )


def _read(url: str) -> _Corpus:
    table, notes = read_columns(url, _OPTION, ()), []
    fields = [field for field in table.schema if field.name != _ID]
    languages = [field.name for field in fields if is_text(field.type)]
    if others := [field.name for field in fields if not is_text(field.type)]:
        notes.append(f"columns that hold no texts are left out: {', '.join(others)}")
    if len(languages) < 2 or any(table.column_names.count(name) > 1 for name in languages):
        raise ConfigError(
            f"{_OPTION}: {url!r} has the columns of texts {languages}; it needs two or more, one for each language"
        )
    texts = {name: _texts(table[name]) for name in languages}
    for name, column in texts.items():
        if missing := column.count(None):
            notes.append(f"{missing:,} of {len(column):,} rows have no text in {name} and are left out of its pairs")
    rows: dict[tuple[str, str], list[int]] = {}
    equal, few = 0, []
    for first, second in combinations(sorted(languages), 2):
        both = zip(texts[first], texts[second], strict=True)
        there = [row for row, (a, b) in enumerate(both) if a is not None and b is not None]
        kept = [row for row in there if texts[first][row] != texts[second][row]]
        equal += len(there) - len(kept)
        if any(len({texts[name][row] for row in kept}) < 2 for name in (first, second)):
            kept = []
            few.append(f"{first} and {second}")
        rows[first, second] = rows[second, first] = kept
    if equal:
        notes.append(f"{equal:,} pairs of equal texts are left out, since they are not translated")
    if not any(rows.values()):
        raise DataError(
            f"{_OPTION}: {url!r} has no two languages with two or more different texts that are translated; give translations in the same row"
        )
    if few:
        notes.append(
            f"languages with fewer than two different texts that are translated have no score: {', '.join(few)}"
        )
    return _Corpus(texts, rows, tuple(notes))


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    for row in blank_rows(pc.fill_null(column.cast(pa.string()), "").combine_chunks()).tolist():
        texts[row] = None
    return texts


def _ranks(first: Sequence[str], second: Sequence[str], scores: Scores) -> Ints:
    """Return the place at which the translation of each text of `first` is found among `second`; equal scores fail.

    Of a text that is there several times, with several translations, each is right.
    """
    questions, asked = _numbered(first)
    candidates, right = _numbered(second)
    pairs = np.unique(np.stack([asked, right]), axis=1)
    found = []
    for start in range(0, len(questions), _QUESTIONS):
        of_block = scores(questions[start : start + _QUESTIONS], candidates)
        own = pairs[:, (pairs[0] >= start) & (pairs[0] < start + len(of_block))]
        of_right = of_block[own[0] - start, own[1]]
        best = np.full(len(of_block), -np.inf, of_block.dtype)
        np.maximum.at(best, own[0] - start, of_right)
        others = (of_block >= best[:, None]).sum(axis=1)
        others -= np.bincount(own[0] - start, of_right >= best[own[0] - start], minlength=len(of_block)).astype(int)
        found.append(1 + others)
    return np.concatenate(found)[asked]


def _numbered(texts: Sequence[str]) -> tuple[list[str], Ints]:
    """Return the different texts, and the number of each text among them."""
    numbers: dict[str, int] = {}
    places = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    return [*numbers], places


def _cosines(form: Form, vectors: Floats, number: Mapping[str, int]) -> Scores:
    asked, stored = form.queries(vectors), form.stored(vectors)

    def scores(first: Sequence[str], second: Sequence[str]) -> Floats:
        products: Floats = asked[[number[text] for text in first]] @ stored[[number[text] for text in second]].T
        return products

    return scores


def _matrix(label: str, name: str, languages: tuple[str, ...], cells: dict[tuple[str, str], float]) -> Matrix:
    values = tuple(tuple(cells.get((a, b)) for b in languages) for a in languages)
    return Matrix(label, name, ("language of the question", "language of the answer"), languages, languages, values)
