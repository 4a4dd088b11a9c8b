"""Evaluates models by a fact in a long document: is the document found by a question about the fact?

Called by `vectide evaluate --needle`. The documents are made of the sentences of a user's corpus, in lengths from 256 tokens
to the model's limit, with one fact at some depth, 0 (the first sentence) to 1 (the last one). Each question is asked of all
documents of its length. The same corpus and model give the same documents. The baseline is the share of words in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, pairwise, takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actors.errors import ConfigError
from actors.quantities import counted
from actors.text.sentences import sentences
from actors.vectors import Floats
from pipeline.evaluate.lexical import all_in_common
from pipeline.evaluate.result import Evaluated, Matrix, Measured
from pipeline.evaluate.texts import Form, Subject, forms_of, scored
from pipeline.quality.bootstrap import Values
from pipeline.quality.judged import read_columns, text_values
from pipeline.quality.metrics import MAIN, rank_values
from pipeline.run.routing import task_of

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

_OPTION = "--needle"
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_EACH = 10  # documents of a length and depth
_SHORTEST = 256  # tokens
_LONGEST = 200  # bytes of a sentence; longer ones are cut. A character of Chinese has three, and is a token
_CHARS_PER_TOKEN = 8  # of the corpus that is read; most texts have fewer
_FILLED = 0.95  # share of a document that is planned, since tokens do not add up exactly
_FACT = 32  # tokens of a fact, at most
_NAMES = ("Ada", "Boris", "Chen", "Dalia", "Emre", "Farah", "Goran", "Hanna", "Ivo", "Jamal")
_FAMILIES = ("Abel", "Brandt", "Costa", "Duval", "Ekman")

Ints = npt.NDArray[np.int64]
# Returns the scores of the questions of some needles with their documents, float [questions, documents].
Scores = Callable[[slice], npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class _Needle:
    """A document with a fact, and the question about it."""

    length: int
    depth: float
    document: str
    question: str


def evaluate_needle(
    url: str,
    subjects: Sequence[Subject],
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
) -> Evaluated:
    """Measure how well models find documents by a fact at some depth in them.

    Args:
        url: Parquet file with a column `text`: the corpus that the documents are made of.
        subjects: The models, the first of which the others are compared with. Its tokenizer makes the documents.
        dims: Numbers of dimensions of a ladder.
        precisions: Types of numbers of a ladder.

    Raises:
        ConfigError: the file does not exist or lacks the column, a model has no dense vectors, or its limit is too small.
        DataError: a text is blank.
    """
    forms = forms_of(subjects, dims, precisions)
    texts = text_values(read_columns(url, _OPTION, ("text",))["text"], "text", f"{_OPTION}: {url!r}")
    needles, notes = _needles(texts, subjects[0].encoder)
    for subject in subjects:
        tokens = subject.encoder.tokenizer.tokenize(
            [needle.document for needle in needles], _tasks(subject.encoder, len(needles))
        )
        if cut := int(tokens.truncated.sum()):
            notes.append(
                f"{cut:,} of {len(needles):,} documents are longer than the {subject.encoder.spec.max_tokens:,} tokens of "
                f"{subject.name}, which cuts them: a fact behind the cut cannot be found"
            )
    vectors = {subject.name: _vectors(subject.encoder, needles) for subject in subjects}
    measured, matrices = [], []
    for label, size, scores in scored(forms, lambda form: _cosines(form, *vectors[form.subject.name]), _words(needles)):
        values = rank_values(_ranks(needles, scores))
        measured.append(Measured(label, values, bytes_per_vector=size))
        matrices += [_matrix(label, name, needles, each) for name, each in values.items()]
    names = [f"{needle.length} tokens, depth {needle.depth:g}, {needle.question}" for needle in needles]
    of = " and ".join(subject.name for subject in subjects)
    return Evaluated("needle at depth", of, MAIN, names, measured, tuple(notes), tuple(matrices))


def _needles(texts: Sequence[str], encoder: Encoder) -> tuple[list[_Needle], list[str]]:
    """Return the documents, by length and then by depth, and a note if the corpus had to be repeated."""
    most, random = encoder.spec.max_tokens, np.random.default_rng(0)
    lengths = [*takewhile(lambda length: length < most, (_SHORTEST << step for step in count())), most]
    wanted = len(_DEPTHS) * _EACH * sum(lengths)
    pieces: list[str] = []
    chars = 0
    for row in random.permutation(len(texts)):
        pieces += _pieces(texts[row])
        chars += len(texts[row])
        if chars > _CHARS_PER_TOKEN * wanted:
            break
    tokens = encoder.tokenizer.tokenize(["", *pieces], _tasks(encoder, 1 + len(pieces))).ids
    empty, *sizes = (len(ids) for ids in tokens)
    total = sum(sizes) - empty * len(sizes)
    notes = []
    if total < wanted:
        notes.append(f"the corpus has {counted(total, 'token')} and the documents {wanted:,}, so its sentences repeat")
    hay, needles = cycle(zip(pieces, sizes, strict=True)), []
    names = [f"{name} {family}" for name in _NAMES for family in _FAMILIES]
    for length in lengths:
        for depth, name in zip(np.repeat(_DEPTHS, _EACH), random.permutation(names), strict=True):
            document, left = [], _FILLED * length - empty - _FACT
            for piece, size in hay:
                left -= size - empty
                if left < 0:
                    break
                document.append(piece)
            if not document:
                raise ConfigError(
                    f"{_OPTION}: a document of {length:,} tokens has no room for a sentence beside its fact; set "
                    f"encoder.max_tokens to {_SHORTEST} or more, or name a model that reads as much"
                )
            fact = f"The secret number of {name} is {random.integers(10_000, 100_000)}."
            document.insert(round(float(depth) * len(document)), fact)
            needles.append(_Needle(length, float(depth), " ".join(document), f"What is the secret number of {name}?"))
    return needles, notes


def _pieces(text: str) -> Iterator[str]:
    """Yield the sentences of a text, and parts of long ones."""
    for start, stop in pairwise([0, *sentences(text), len(text)]):
        sentence = " ".join(text[start:stop].split())
        length = _LONGEST * len(sentence) // max(1, len(sentence.encode()))
        for place in range(0, len(sentence), length or 1):
            yield sentence[place : place + length]


def _tasks(encoder: Encoder, count: int) -> list[str | None]:
    return [task_of(encoder.spec, "Retrieval", document=True)] * count


def _vectors(encoder: Encoder, needles: Sequence[_Needle]) -> tuple[Floats, Floats]:
    """Return the vectors of the documents and of the questions."""
    documents = encoder.encode([needle.document for needle in needles], _tasks(encoder, len(needles)))
    return documents, encoder.encode([needle.question for needle in needles], task_of(encoder.spec, "Retrieval"))


def _cosines(form: Form, documents: Floats, questions: Floats) -> Scores:
    stored, asked = form.stored(documents), form.queries(questions)
    return lambda part: asked[part] @ stored[part].T


def _words(needles: Sequence[_Needle]) -> Scores:
    return lambda part: all_in_common(
        [needle.question for needle in needles[part]], [needle.document for needle in needles[part]]
    )


def _ranks(needles: Sequence[_Needle], scores: Scores) -> Ints:
    """Return the place at which the document of each question is found among those of its length; equal scores fail."""
    found, size = [], len(_DEPTHS) * _EACH
    for start in range(0, len(needles), size):
        of_length = scores(slice(start, start + size))
        found.append((of_length >= np.diag(of_length)[:, None]).sum(axis=1))
    return np.concatenate(found)


def _matrix(label: str, name: str, needles: Sequence[_Needle], values: Values) -> Matrix:
    lengths = tuple(dict.fromkeys(f"{needle.length:,}" for needle in needles))
    cells = values.reshape(len(lengths), len(_DEPTHS), _EACH).mean(axis=2).tolist()
    return Matrix(
        label,
        name,
        ("tokens of a document", "depth of the fact"),
        lengths,
        tuple(f"{depth:g}" for depth in _DEPTHS),
        tuple(map(tuple, cells)),
    )
