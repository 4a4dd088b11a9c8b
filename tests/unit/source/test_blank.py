"""Blank texts: empty ones and those of invisible characters."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.source.blank import blank_rows

NOTHING = [
    "",
    " ",
    "\t\n\r",
    "\u200b",
    "\u200c\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u180e",
    "\u200e\u200f",
    "\u202a\u202e",
]
NOTHING += [
    "\u2066\u2069",
    "\0",
    "\x01\x7f\x85",
    "\u200b \u3000\u00a0\ufeff\n",
    "\u061c",
    "\u3164",
    "\ufe0f",
    "\U000e0001\U000e0041",
]
SOMETHING = [
    "a",
    "\u0301",
    "👩\u200d👩",
    "\ufeffa",
    "\u200b.",
    "\ufffd",
    "\u0915\u094d\u200d",
    "\u2800",
    "\u0600x",
    "中",
    "\ue000",
]


@pytest.mark.parametrize("text", NOTHING)
def test_an_invisible_text_is_blank(text):
    assert blank_rows(pa.array([text])).tolist() == [0]


@pytest.mark.parametrize("text", SOMETHING)
def test_a_text_with_a_visible_character_is_not_blank(text):
    assert blank_rows(pa.array([text])).tolist() == []


@pytest.mark.slow
def test_every_invisible_character_passes_the_first_byte_check():
    """The set of first bytes is complete."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    blank = set(blank_rows(pa.array(characters)).tolist())
    shown = ("L", "M", "N", "P", "S", "Co")
    for index, character in enumerate(characters):
        category = unicodedata.category(character)
        if category in ("Cc", "Cf") or category.startswith("Z") or character.isspace():
            assert index in blank, hex(ord(character))
        # Fillers (Lo) and selectors (Mn) are the few that Unicode lets every program ignore.
        elif category.startswith(shown) and not 0xE0000 <= ord(character) < 0xE1000:
            assert index not in blank or category in ("Lo", "Mn"), hex(ord(character))


@given(st.lists(st.sampled_from([*NOTHING, *SOMETHING]), max_size=20), st.integers(0, 20))
def test_rows_are_found_in_any_slice(texts, start):
    found = blank_rows(pa.array(texts, pa.string()).slice(min(start, len(texts))))
    assert found.tolist() == [index for index, text in enumerate(texts[start:]) if text in NOTHING]
