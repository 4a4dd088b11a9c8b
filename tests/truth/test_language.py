"""Floors of the step language on texts of which the language is known.

What the step does was chosen on the other half of the texts: the other chapters, pages and lines.
"""

from __future__ import annotations

import itertools

import duckdb
import pyarrow as pa
import pytest

from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.language import Language
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import Language as Settings
from tests.truth import debian

pytestmark = pytest.mark.skipif(not debian.IS_THERE, reason=debian.WHY_SKIPPED)

LEAST = 20  # characters
FOREIGN = 0.1  # share of foreign texts among technical ones


@pytest.fixture(scope="module")
def paragraphs() -> list[debian.Paragraph]:
    """Half of the chapters."""
    aligned = debian.aligned()
    chapters = sorted({each.chapter for each in aligned})[1::2]
    return [each for each in aligned if each.chapter in chapters]


def dropped(rows: list[tuple[str, ...]], allow: list[str] | list[list[str]]) -> list[bool]:
    sides = ("query", "passage") if len(rows[0]) == 2 else ("text",)
    step = Language(Settings.model_validate({"allow": allow}), sides)
    arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    raw = step.measure(arrays)
    connection = duckdb.connect()
    connection.register("given", pa.table([range(len(rows)), *arrays, *raw.columns], ["n", *sides, *raw.schema.names]))
    decision = step.decide(Seen(connection, "given", sides, NullReporter(), "unused"))
    return [each for (each,) in connection.execute(f"select dropped from {decision.table} order by n").fetchall()]


def test_untranslated_paragraphs_are_found_and_translated_ones_kept(paragraphs):
    untranslated = debian.untranslated(paragraphs)
    found = kept = wrong = 0
    for language in debian.LANGUAGES:
        known = [each for each in paragraphs if each.language == language and len(each.other) >= LEAST]
        known = [each for each in known if each.is_translated or each in untranslated][
            ::2
        ]  # half is enough, and quicker
        verdicts = dropped([(each.english, each.other) for each in known], [["en", language]])
        for paragraph, goes in zip(known, verdicts, strict=True):
            found += goes and paragraph in untranslated
            kept += not goes and paragraph in untranslated
            wrong += goes and paragraph.is_translated
    assert found + kept > 400
    assert found / (found + kept) >= 0.97
    assert found / (found + wrong) >= 0.95


@pytest.fixture(scope="module")
def functions() -> list[debian.Pair]:
    """Half of the pages of Python's library."""
    functions = list(debian.signatures())
    pages = sorted({each.source for each in functions})[1::2]
    return [each for each in functions if each.source in pages]


@pytest.mark.parametrize("texts", ["passages of Python", "signatures of Python", "lines of manual pages"])
def test_what_is_dropped_among_technical_english_is_not_english(texts, paragraphs, functions):
    english = {
        "passages of Python": [each.passage for each in functions],
        "signatures of Python": [each.query for each in functions],
        "lines of manual pages": [each.passage for each in itertools.islice(debian.manual_pages(), 1, None, 2)],
    }[texts]
    english = [text for text in english if len(text) >= LEAST]
    foreign = [each.other for each in paragraphs if each.is_translated and len(each.other) >= LEAST]
    count = round(len(english) * FOREIGN / (1 - FOREIGN))
    verdicts = dropped([(text,) for text in [*english, *foreign[:: len(foreign) // count][:count]]], ["en"])
    wrong, found = sum(verdicts[: len(english)]), sum(verdicts[len(english) :])
    assert found / (found + wrong) >= 0.9
    assert found / count >= 0.9
