"""Evaluates a model by pairs and triplets of texts, and by pairs of a text and a picture.

Called by `vectide evaluate`. The model encodes in this process: these files have some thousands of rows.

- Similarity (`--sts`): Spearman's correlation of the cosines with the scores that people gave.
- Negation (`--negation`): of an anchor a, a text e that follows from it and a text n that denies e. EasyNegation is the share
  of triplets with cos(a, e) > cos(a, n), HardNegation that with cos(a, e) > cos(e, n), as in the paper of Jina Embeddings v1.
  Equal cosines count as failures.
- Alignment (`--alignment`): the mean cosine of a text and its picture, and that with ten random other pictures, for each task
  of the model.

The first two have a baseline in the same run: the share of words in common in place of the cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.vectors import Floats
from pipeline.evaluate.ladder import Rung, rungs
from pipeline.evaluate.lexical import words_in_common
from pipeline.evaluate.result import Evaluated, Measured
from pipeline.quality.bootstrap import Values
from pipeline.quality.judged import read_columns, text_values
from pipeline.run.routing import task_of
from pipeline.search.questions import read_file

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

OTHERS = 10  # random pictures of each text
_PICTURES = 64  # in memory at a time
_BASELINE = "words in common"
_COLUMNS = {
    "sts": ("sentence1", "sentence2", "score"),
    "negation": ("anchor", "entailment", "negative"),
    "alignment": ("text", "image"),
}
_MAIN = {"sts": "Spearman", "negation": "HardNegation", "alignment": "cosine"}

_T = TypeVar("_T")
# Returns how alike the texts of two lists are, pair by pair.
Alike = Callable[[Sequence[str], Sequence[str]], Values]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to evaluate: that of a table, or one by its name.

    Attributes:
        name: Its name in the result.
        encoder: The model.
    """

    name: str
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class Form:
    """A model, or a form of its vectors.

    Attributes:
        step: Rung of a ladder; None: the vectors as they are.
        label: Its name in the result.
    """

    subject: Subject
    step: Rung | None
    label: str

    @property
    def size(self) -> float | None:
        """Size of a vector, in bytes, on a ladder."""
        return None if self.step is None else self.step.bytes_per_vector

    def stored(self, vectors: Floats) -> Floats:
        """Return vectors as a search reads them back."""
        return vectors if self.step is None else self.step.stored(vectors)

    def queries(self, vectors: Floats) -> Floats:
        """Return query vectors to compare with stored ones."""
        return vectors if self.step is None else self.step.queries(vectors)


def evaluate_texts(
    ability: str,
    url: str,
    subjects: Sequence[Subject],
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> Evaluated:
    """Measure models by the pairs or triplets of a file.

    Args:
        ability: "sts", "negation" or "alignment".
        url: Parquet file with the columns `sentence1`, `sentence2`, `score`; or `anchor`, `entailment`, `negative`; or
            `text`, `image`.
        subjects: The models, the first of which the others are compared with.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: the file does not exist or lacks a column, or a model has no dense vectors, or takes no pictures.
        DataError: a text is blank, a score is no number, all scores are equal, or a picture cannot be decoded.
    """
    option = f"--{ability}"
    table = read_columns(url, option, _COLUMNS[ability])
    where = f"{option}: {url!r}"
    forms = forms_of(subjects, dims, precisions)
    if ability == "alignment":
        measured = [
            each
            for subject in subjects
            for each in _aligned(subject, [form for form in forms if form.subject is subject], table, where)
        ]
    else:
        texts = [text_values(table[name], name, where) for name in _COLUMNS[ability] if name != "score"]
        truth = _scores(table["score"], where) if ability == "sts" else None
        measure = _similarity if ability == "sts" else _negation
        # Each different text is encoded once, so that equal texts have equal vectors.
        number = {text: place for place, text in enumerate(dict.fromkeys(text for part in texts for text in part))}
        vectors = {each.name: each.encoder.encode([*number], task_of(each.encoder.spec, "STS")) for each in subjects}
        words: Alike = words_in_common
        measured = [
            Measured(label, measure(texts, alike), bytes_per_vector=size, truth=truth)
            for label, size, alike in scored(
                forms, lambda form: _cosines(form, vectors[form.subject.name], number), words
            )
        ]
    names = [str(number) for number in range(table.num_rows)]
    of = " and ".join(subject.name for subject in subjects)
    return Evaluated(ability, of, _MAIN[ability], names, measured)


def _similarity(texts: Sequence[Sequence[str]], alike: Alike) -> dict[str, Values]:
    return {"Spearman": alike(texts[0], texts[1])}


def _negation(texts: Sequence[Sequence[str]], alike: Alike) -> dict[str, Values]:
    anchor, entailment, negative = texts
    follows = alike(anchor, entailment)
    return {
        "HardNegation": (follows > alike(entailment, negative)).astype(np.float64),
        "EasyNegation": (follows > alike(anchor, negative)).astype(np.float64),
    }


def forms_of(subjects: Sequence[Subject], dims: Sequence[int] | None, precisions: Sequence[str] | None) -> list[Form]:
    """Return the forms of models to measure: one of each, or the rungs of its ladder.

    Raises:
        ConfigError: a model makes no single vectors, or a ladder does not fit.
    """
    forms = []
    for subject in subjects:
        spec = subject.encoder.spec
        if not spec.outputs[0].single:
            raise ConfigError(f"{subject.name} makes several vectors of a text; this compares single vectors of texts")
        for step in rungs(spec.dim, dims, precisions) or (None,):
            label = subject.name
            if step is not None:
                label = step.label if len(subjects) == 1 else f"{subject.name}: {step.label}"
            forms.append(Form(subject, step, label))
    return forms


def scored(forms: Sequence[Form], scores: Callable[[Form], _T], words: _T) -> Iterator[tuple[str, float | None, _T]]:
    """Yield a label, the size of a vector and the scores for each form, and for the baseline at the end."""
    for form in forms:
        yield form.label, form.size, scores(form)
    yield _BASELINE, None, words


def _cosines(form: Form, vectors: Floats, number: Mapping[str, int]) -> Alike:
    stored = form.stored(vectors)

    def alike(first: Sequence[str], second: Sequence[str]) -> Values:
        a, b = (stored[[number[text] for text in part]] for part in (first, second))
        return _dots(a, b)

    return alike


def _dots(first: Floats, second: Floats) -> Values:
    dots: Values = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    return dots


def _scores(column: pa.ChunkedArray, where: str) -> Values:
    try:
        scores = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{where}: the column 'score' is {column.type}; it must be numbers") from None
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise DataError(f"{where}: the column 'score' has no number in row {row}; give each row one")
    if np.ptp(scores) == 0:
        raise DataError(
            f"{where}: all scores are {scores[0]:g}, so no order can agree with them; give scores that differ"
        )
    return np.asarray(scores, np.float64)


def _aligned(subject: Subject, forms: Sequence[Form], table: pa.Table, where: str) -> Iterator[Measured]:
    """Yield the cosines of texts and pictures in each form of a model's vectors, with each of its tasks."""
    encoder, count = subject.encoder, table.num_rows
    spec = encoder.spec
    spec.seeing()  # raises, if the model takes texts only
    if count < 2:
        raise DataError(
            f"{where} has one pair; give two or more, because each text is compared with other pictures too"
        )
    texts = text_values(table["text"], "text", where)
    random = np.random.default_rng(0)
    others = np.stack([random.permutation(count - 1)[:OTHERS] for _ in range(count)])
    others += others >= np.arange(count)[:, None]  # all numbers but the own one
    tasks: list[str | None] = [each for each in spec.tasks if each not in spec.query_of.values()]
    encoded = []  # once for all forms
    for task in tasks or [None]:
        pictures = np.concatenate(
            [
                encoder.encode_images(_pictures(table["image"].slice(start, _PICTURES), where), task)
                for start in range(0, count, _PICTURES)
            ]
        )
        encoded.append((task, encoder.encode(texts, spec.query_of.get(task, task)), pictures))
    for form in forms:
        name = subject.name if form.step is None else f"{subject.name}: {form.step.label}"
        for task, vectors, pictures in encoded:
            asked, stored = form.queries(vectors), form.stored(pictures)
            values = {
                "cosine": _dots(asked, stored),
                "cosine with others": np.stack([_dots(asked, stored[column]) for column in others.T]).mean(axis=0),
            }
            yield Measured(name, values, task, form.size)


def _pictures(column: pa.ChunkedArray, where: str) -> list[bytes]:
    """Return the bytes of the picture files in a column of bytes, of paths or URLs, or of the struct `{bytes, path}`."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    if column.null_count:
        raise DataError(f"{where}: the column 'image' has nulls ({column.null_count:,}); give each row a picture")
    return [
        cell if isinstance(cell, bytes) else read_file(str(cell), where, "a picture") for cell in column.to_pylist()
    ]
