"""Antonyms of WordNet, read from the files of Debian's package wordnet-base.

A word is replaced only where its meaning is nearly certain: in its first sense, and where nine of ten uses that WordNet has
counted are of that part of speech, or where it follows a form of be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from actors.errors import ConfigError
from pipeline.curate.negation.rules import Negated, unfit
from pipeline.curate.negation.verbs import form_of, like, words
from pipeline.curate.negation.words import NEGATIONS, Word, words_of

DEFAULT_FOLDER = "/usr/share/wordnet"
_PARTS = {"adj": "a", "adv": "r", "verb": "v"}
_OF_SENSE = {"2": "v", "3": "a", "4": "r", "5": "a"}  # number of the part of speech in a sense key
_SHARE = 0.9
_BE = words("am is are was were be been being very quite too so rather")
# Words of grammar: their antonyms deny nothing.
_GRAMMAR = words(
    "be do have can may will make let get go come up down more most less least first last next other own same such "
    "well still just even ever right much many now then here there back only out in on off over under like give all some"
)


@dataclass(frozen=True)
class Antonyms:
    """Antonyms of first senses.

    Attributes:
        of: Antonym by part of speech ("a", "r", "v") and word.
        uses: Uses that WordNet has counted, by part of speech and word; nouns are "n".
    """

    of: dict[tuple[str, str], str]
    uses: Counter[tuple[str, str]] = field(default_factory=Counter)

    def are_antonyms(self, one: str, other: str) -> bool:
        """Return whether two words are antonyms, in any inflection."""
        if any(self.of.get((part, one)) == other or self.of.get((part, other)) == one for part in "ar"):
            return True
        first, second = form_of(one), form_of(other)
        if first is None or second is None or first.tense != second.tense:
            return False
        return self.of.get(("v", first.base)) == second.base or self.of.get(("v", second.base)) == first.base

    def replace(self, text: str) -> Negated | str:
        """Return a text with one word replaced by its antonym, or why there is none; the word after be is the first choice."""
        if (reason := unfit(text)) is not None:
            return reason
        found = words_of(text)
        choices = [
            (not after_be, at, antonym)
            for at, word in enumerate(found)
            for after_be in [at > 0 and found[at - 1].low in _BE and not _is_participle_next(found[at + 1 : at + 2])]
            if (antonym := self._antonym(word, after_be=after_be)) is not None
        ]
        if not choices:
            return "no antonym"
        _, at, antonym = min(choices)
        word, start = found[at], found[at].start
        if at and found[at - 1].low in ("a", "an"):
            article = "an" if antonym[0] in "aeiou" else "a"
            start = found[at - 1].start
            antonym = f"{article.capitalize() if text[start].isupper() else article}{text[found[at - 1].end : word.start]}{antonym}"
        elif text[start].isupper():
            antonym = antonym[0].upper() + antonym[1:]
        return Negated(text[:start] + antonym + text[word.end :], "antonym")

    def _antonym(self, word: Word, *, after_be: bool) -> str | None:
        low = word.low
        if low in _GRAMMAR:
            return None
        if after_be and ("a", low) in self.of:
            return self.of["a", low]
        form = form_of(low)
        if form is not None and form.base not in _GRAMMAR and form.tense != "base" and ("v", form.base) in self.of:
            other = self.of["v", form.base]
            return like(other, form) if self._is_mostly("v", form.base) and form_of(like(other, form)) else None
        for part in "ar" if form is None else "":
            if (part, low) in self.of and self._is_mostly(part, low):
                return self.of[part, low]
        return None

    def _is_mostly(self, part: str, word: str) -> bool:
        uses = sum(self.uses[each, word] for each in "narv")
        return uses > 0 and self.uses[part, word] >= _SHARE * uses


def read_antonyms(folder: str | None) -> Antonyms | None:
    """Read the antonyms of adjectives, adverbs and verbs.

    Args:
        folder: Folder of WordNet's files; None: Debian's, if it is there.

    Raises:
        ConfigError: the folder that is named lacks a file.
    """
    place = Path(folder or DEFAULT_FOLDER)
    needed = [place / f"{kind}.{part}" for part in _PARTS for kind in ("index", "data")] + [place / "cntlist.rev"]
    if missing := [path for path in needed if not path.is_file()]:
        if folder is None:
            return None
        raise ConfigError(
            f"--wordnet {folder!r} has no file {missing[0].name!r}; name the folder of WordNet 3.0, as apt-get install "
            f"wordnet-base makes it in {DEFAULT_FOLDER}"
        )
    found: dict[tuple[str, str], str] = {}
    for name, part in _PARTS.items():
        first = dict(_first_senses(_lines(place / f"index.{name}")))
        for offset, word, antonym in _pairs(_lines(place / f"data.{name}")):
            if first.get(word) == offset and not {word, antonym} & NEGATIONS:
                found.setdefault((part, word), antonym)
    uses: Counter[tuple[str, str]] = Counter()
    for line in _lines(place / "cntlist.rev"):
        key, _, count = line.split()[:3]
        word, _, sense = key.partition("%")
        uses[_OF_SENSE.get(sense[0], "n"), word] += int(count)
    return Antonyms(found, uses)


def _is_participle_next(after: list[Word]) -> bool:
    """Return whether a participle follows, so that a word after be is no adjective: long awaited."""
    return bool(after) and after[0].low.endswith(("ed", "ing"))


def _lines(path: Path) -> Iterable[str]:
    return (line for line in path.read_text("latin-1").splitlines() if line and not line.startswith(" "))


def _first_senses(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield word and offset of its first sense, from the lines of an index."""
    for line in lines:
        fields = line.split()
        yield fields[0], fields[6 + int(fields[3])]


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Yield offset, word and antonym of each pointer to an antonym, from the lines of a part of speech."""
    of: dict[str, list[str]] = {}
    pointers: list[tuple[str, int, str, int]] = []
    for line in lines:
        fields = line.partition(" | ")[0].split()
        offset, count = fields[0], int(fields[3], 16)
        of[offset] = [each.partition("(")[0].lower() for each in fields[4 : 4 + 2 * count : 2]]
        at = 4 + 2 * count
        for first in range(at + 1, at + 1 + 4 * int(fields[at]), 4):
            symbol, target, _, ends = fields[first : first + 4]
            if symbol == "!":
                pointers.append((offset, int(ends[:2], 16), target, int(ends[2:4], 16)))
    for offset, source, target, end in pointers:
        word, antonym = of[offset][source - 1], of[target][end - 1]
        if "_" not in word + antonym:
            yield offset, word, antonym
