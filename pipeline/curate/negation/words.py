"""Words of an English text, the words that negate, and the check that two texts differ by negation alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.curate.negation.verbs import form_of, words

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")
_PIECE = re.compile(r"\w+(?:-\w+)*|'\w+")
_NOT = re.compile(r"(?<=\w)n't\b")

NEGATIONS = words(
    "not cannot no never none nobody nothing nowhere neither nor without hardly scarcely barely rarely seldom non "
    "aint arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt mustnt shouldnt wasnt werent wont wouldnt"
)
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "non-")
AUXILIARIES = words(
    "am is are was were can could will would shall should must have has had do does did 'm 're 's 'll 've 'd"
)
_ALLOWED_IN = words("any anything anyone anybody anywhere either every of one a an") | AUXILIARIES
_ALLOWED_OUT = (
    words("some something someone somebody somewhere a an all each several many most both too sometimes always never")
    | AUXILIARIES
)
_MOST_EDITS = 6  # words taken out and put in


class Word(NamedTuple):
    """Word of a text, in lower case and with a plain apostrophe, and where it is."""

    low: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """Return the words of a text, in order."""
    return [Word(_plain(found[0]), *found.span()) for found in _WORD.finditer(text)]


def is_negated(text: str) -> bool:
    """Return whether a text has a word that negates: not, n't, no, never, without, few, non-..."""
    before = ""
    for word in words_of(text):
        low = word.low
        if low in NEGATIONS or low.endswith("n't") or low.startswith("non-"):
            return True
        if low == "few" and before not in ("a", "the", "these", "those", "quite"):
            return True
        before = low
    return False


def differ_by_negation(text: str, negative: str, are_antonyms: Callable[[str, str], bool] | None = None) -> bool:
    """Return whether two texts differ by negation alone, of one thing.

    One word that negates is put in, or one word is replaced by its opposite: with a prefix (happy, unhappy), or as an
    antonym. Besides, only what English needs for that may change: forms of do, the base form of the verb, some and any,
    articles, and quantifiers. At most six words are taken out and put in.
    """
    before, after = _pieces(text), _pieces(negative)
    out, put = [], []
    for _, start, stop, first, last in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if before[start:stop] != after[first:last]:
            out += before[start:stop]
            put += after[first:last]
    if len(out) + len(put) > _MOST_EDITS:
        return False
    negations = [word for word in put if word in NEGATIONS]
    if not negations:
        return _is_opposite(out, put, are_antonyms)
    rest = [word for word in put if word not in NEGATIONS]
    bases = {form.base for word in out if (form := form_of(word)) is not None}
    return (
        len(negations) == 1
        and all(word in _ALLOWED_IN or word in bases for word in rest)
        and all(word in _ALLOWED_OUT or ((form := form_of(word)) is not None and form.base in rest) for word in out)
    )


def _is_opposite(out: Sequence[str], put: Sequence[str], are_antonyms: Callable[[str, str], bool] | None) -> bool:
    """Return whether one word is replaced by its opposite, an article before it not counted."""
    articles = ("a", "an")
    old, new = ([word for word in words if word not in articles] for words in (out, put))
    if len(old) != 1 or len(new) != 1:
        return False
    if any(new[0] == prefix + old[0] for prefix in _PREFIXES):
        return True
    return are_antonyms is not None and are_antonyms(old[0], new[0])


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


def _pieces(text: str) -> list[str]:
    """Return the words of a text with contractions taken apart: isn't is "is" and "not"."""
    plain = _plain(text).replace("can't", "cannot").replace("won't", "will not").replace("shan't", "shall not")
    return _PIECE.findall(_NOT.sub(" not", plain))
