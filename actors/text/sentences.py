"""Where a text may be cut: paragraphs, sentences, lines. Called by the chunker.

Sentences are Unicode's own (UAX #29), by ICU through icu4py: one set of rules for every script, at some 50 million
characters a second, where the same rules in Python take a day for what ICU does in seconds, and the fast splitters
with better English want to be told the language. The price: an abbreviation before a capital ("Dr. Jones") ends a
sentence. Line ends inside a paragraph are read as spaces, so that a hard-wrapped sentence stays one.
"""

from __future__ import annotations

import re

import icu4py
import numpy as np
import numpy.typing as npt
from icu4py.breakers import SentenceBreaker

Ints = npt.NDArray[np.int64]

# The rules of other versions cut elsewhere, and so make other vectors.
RULES = f"icu-{icu4py.icu_version_info[0]}"

# A paragraph ends with a blank line; the next one begins with its first line, indentation included.
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+|\u2029")
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


def paragraphs(text: str) -> Ints:
    """Characters at which a paragraph begins, without the first: rising, none of them 0 or the end of the text."""
    return _inside((match.end() for match in _BLANK_LINES.finditer(text)), text)


def lines(text: str) -> Ints:
    """Characters at which a line begins, as `paragraphs`."""
    return _inside((match.end() for match in _LINE_END.finditer(text)), text)


def sentences(text: str) -> Ints:
    """Characters at which a sentence begins, as `paragraphs`. The space after a sentence belongs to it.

    Args:
        text: Without lone surrogates.
    """
    flat = text.replace("\n", " ").replace("\r", " ")
    ends = np.fromiter((end for _, end in SentenceBreaker(flat, "root").segments()), np.int64)
    if len(ends) and ends[-1] != len(text):
        # ICU counts in UTF-16, where a character beyond U+FFFF counts twice.
        codes = np.frombuffer(flat.encode("utf-32-le"), np.uint32)
        ends = np.searchsorted(np.cumsum(1 + (codes > 0xFFFF)), ends) + 1
    return np.union1d(ends[:-1], paragraphs(text))


def _inside(places: object, text: str) -> Ints:
    found = np.fromiter(places, np.int64)  # type: ignore[call-overload]
    kept: Ints = found[(found > 0) & (found < len(text))]
    return kept
