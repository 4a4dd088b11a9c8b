"""Texts of which the language is known, for the step language. `benchmarks/curation/language.py` has the figures.

They are half of the chapters, pages and lines: what the step does was chosen on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.language import Language
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import Language as Settings
from tests.truth import debian

LEAST = 20  # characters of a text
FOREIGN = 0.1  # share of texts in other languages among technical English


@dataclass(frozen=True)
class Case:
    """Rows to keep, rows to drop, and the setting `allow` that tells them apart."""

    name: str
    keep: Sequence[tuple[str, ...]]
    drop: Sequence[tuple[str, ...]]
    allow: list[str] | list[list[str]]

    def dropped(self) -> list[bool]:
        """Return what the step says about the rows to keep, then those to drop."""
        rows = [*self.keep, *self.drop]
        sides = ("query", "passage") if len(rows[0]) == 2 else ("text",)
        step = Language(Settings.model_validate({"allow": self.allow}), sides)
        arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        raw = step.measure(arrays)
        seen = pa.table([range(len(rows)), *arrays, *raw.columns], ["n", *sides, *raw.schema.names])
        with duckdb.connect() as connection:
            connection.register("seen", seen)
            table = step.decide(Seen(connection, "seen", sides, NullReporter(), "unused")).table
            return [each for (each,) in connection.execute(f"select dropped from {table} order by n").fetchall()]

    def counts(self, dropped: Sequence[bool]) -> tuple[int, int]:
        """Return the numbers of rows that were dropped and should be, and that should not."""
        return sum(dropped[len(self.keep) :]), sum(dropped[: len(self.keep)])


def translations() -> list[Case]:
    """Return paragraphs of manuals with their translation; those to drop were never translated."""
    aligned = debian.aligned()
    untranslated = debian.untranslated(aligned)
    cases = []
    for language in debian.LANGUAGES:
        known = [each for each in _half(aligned) if each.language == language]
        keep, drop = (
            [(each.english, each.other) for each in known if chosen(each)]
            for chosen in (lambda each: each.is_translated, untranslated.__contains__)
        )
        cases.append(Case(f"English and {language}", keep, drop, [["en", language]]))
    return cases


def technical() -> list[Case]:
    """Return technical English; those to drop are paragraphs of manuals in other languages."""
    functions = list(debian.signatures())
    pages = set(sorted({each.source for each in functions})[1::2])
    functions = [each for each in functions if each.source in pages]
    kinds = {
        "passages of Python": [each.passage for each in functions],
        "signatures of Python": [each.query for each in functions],
        "lines of manual pages": [each.passage for each in debian.manual_pages()][1::2],
    }
    foreign = [(each.other,) for each in _half(debian.aligned()) if each.is_translated]
    cases = []
    for name, texts in kinds.items():
        keep = [(text,) for text in texts if len(text) >= LEAST]
        count = round(len(keep) * FOREIGN / (1 - FOREIGN))
        cases.append(Case(name, keep, foreign[:: len(foreign) // count][:count], ["en"]))
    return cases


def _half(aligned: list[debian.Paragraph]) -> list[debian.Paragraph]:
    chapters = set(sorted({each.chapter for each in aligned})[1::2])
    return [each for each in aligned if each.chapter in chapters and len(each.other) >= LEAST]
