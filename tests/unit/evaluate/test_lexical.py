"""Words of texts, and the share of them that two texts have in common."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.lexical import hashed_words, words_in_common, words_of


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


def test_counts_of_words_are_vectors_of_unit_length():
    same, other, blank = hashed_words(["Cat cat dog", "dog CAT cat", " "])[[0, 1, 2]]
    assert same == pytest.approx(other)
    assert np.linalg.norm(same) == pytest.approx(1)
    assert sorted(same[same > 0]) == pytest.approx(
        [np.log(2) / np.hypot(np.log(2), np.log(3)), np.log(3) / np.hypot(np.log(2), np.log(3))]
    )
    assert not blank.any()
