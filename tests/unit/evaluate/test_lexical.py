"""Words of texts, and the share of them that two texts have in common."""

from __future__ import annotations

import pytest

from pipeline.evaluate.lexical import words_in_common, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's nap_time, 2x!", ["the", "cat", "s", "nap_time", "2x"]),
        ("Übung macht den MEISTER", ["übung", "macht", "den", "meister"]),
        ("検索 by語", ["検", "索", "by", "語"]),
        (" - ", []),
    ],
)
def test_words_are_lower_case_and_signs_are_words(text, words):
    assert words_of(text) == words


def test_equal_texts_share_all_words_and_blank_ones_none():
    assert list(words_in_common(["a b", "a b", ""], ["B a", "b c", ""])) == [1, 1 / 3, 0]
