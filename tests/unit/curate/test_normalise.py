"""The form in which texts are compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curate.normalise import normalised


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  Copper \t WIRE\n", "copper wire"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("Straße", "strasse"),
        ("ﬁne ① ＡＢＣ", "fine 1 abc"),
        ("e\u0301", "é"),
        ("\u00a0\u2003", ""),
        ("so\u00adft", "soft"),
    ],
)
def test_equal_texts_have_one_form(text, form):
    assert normalised(text) == form


@given(st.text())
def test_the_form_of_a_form_is_itself(text):
    assert normalised(normalised(text)) == normalised(text)
