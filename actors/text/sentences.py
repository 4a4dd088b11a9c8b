"""Finds the boundaries of paragraphs, sentences and lines in a text. Called by the chunker.

Sentences follow Unicode's rules (UAX #29), computed by ICU through icu4py: one set of rules for all scripts, at about
50 million characters per second. The same rules in Python are slower by orders of magnitude, and fast splitters that
are better for English need to know the language. The trade-off: an abbreviation before a capital ("Dr. Jones") ends a
sentence. A line end inside a paragraph counts as a space, so that a hard-wrapped sentence stays whole.
"""

from __future__ import annotations

import re

import icu4py
import numpy as np
import numpy.typing as npt
from icu4py.breakers import SentenceBreaker

Ints = npt.NDArray[np.int64]

# Other versions of the rules cut at other positions, which changes the vectors.
RULES = f"icu-{icu4py.icu_version_info[0]}"

# A paragraph ends with a blank line; the next one begins with its first line, including the indentation.
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+|\u2029")
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


def paragraphs(text: str) -> Ints:
    """Return the offsets at which paragraphs begin, except the first: rising, greater than 0, less than the length."""
    return _inside((match.end() for match in _BLANK_LINES.finditer(text)), text)


def lines(text: str) -> Ints:
    """Return the offsets at which lines begin, in the form of `paragraphs`."""
    return _inside((match.end() for match in _LINE_END.finditer(text)), text)


def sentences(text: str) -> Ints:
    """Return the offsets at which sentences begin, in the form of `paragraphs`. Space after a sentence belongs to it.

    Args:
        text: Without lone surrogates.
    """
    flat = text.replace("\n", " ").replace("\r", " ")
    ends = np.fromiter((end for _, end in SentenceBreaker(flat, "root").segments()), np.int64)
    if len(ends) and ends[-1] != len(text):
        # ICU counts UTF-16 units, and a character above U+FFFF has two of them.
        codes = np.frombuffer(flat.encode("utf-32-le"), np.uint32)
        ends = np.searchsorted(np.cumsum(1 + (codes > 0xFFFF)), ends) + 1
    return np.union1d(ends[:-1], paragraphs(text))


def _inside(offsets: object, text: str) -> Ints:
    all_offsets = np.fromiter(offsets, np.int64)  # type: ignore[call-overload]
    inside: Ints = all_offsets[(all_offsets > 0) & (all_offsets < len(text))]
    return inside
