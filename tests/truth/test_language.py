"""Floors of the step language on texts of which the language is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.truth import debian, languages

pytestmark = pytest.mark.skipif(not debian.IS_THERE, reason=debian.WHY_SKIPPED)


def test_untranslated_paragraphs_are_found_and_translated_ones_kept():
    found = missed = wrong = 0
    for case in languages.translations():
        half = replace(case, keep=case.keep[::2], drop=case.drop[::2])  # it takes half the time
        right, others = half.counts(half.dropped())
        found, missed, wrong = found + right, missed + len(half.drop) - right, wrong + others
    assert found + missed > 400
    assert found / (found + missed) >= 0.97
    assert found / (found + wrong) >= 0.95


def test_what_is_dropped_among_technical_english_is_not_english():
    for case in languages.technical():
        found, wrong = case.counts(case.dropped())
        assert found / (found + wrong) >= 0.9, case.name
        assert found / len(case.drop) >= 0.9, case.name
