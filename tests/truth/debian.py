"""Texts of Debian with a known truth, read from what `make test-data` unpacked: install.sh.

The Debian Reference exists in eight languages, paragraph by paragraph, and some paragraphs were never translated: pairs
that are identical and in a wrong language. Signatures of Python with their first paragraph, and manual pages with their
line, are English pairs of which each is known to be good.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".venvs" / "data"
SHARE = ROOT / "usr" / "share"
WORDNET = SHARE / "wordnet"
IS_THERE = (ROOT / ".ready").exists()
WHY_SKIPPED = "the texts of Debian are not there: make test-data"
LANGUAGES = ("de", "es", "fr", "it", "ja", "pt", "zh")
"""Those beside English, as ISO 639-1."""
_FILES = {"pt": "pt-br", "zh": "zh-cn"}
_PARAGRAPH = re.compile(r"<p(?: [^>]*)?>(.*?)</p>", re.DOTALL)
_SIGNATURE = re.compile(r'<dt class="sig[^>]*>\n(.*?)</dt>\n<dd><p>(.*?)</p>', re.DOTALL)
_NAME = re.compile(r'^\.S[Hh] "?NAME"?\n(.*?)\s\\-\s(.*?)\n\.S', re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{3,}")
_LATIN = re.compile(r"[A-Za-z]{2,}")
_HAN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_ROFF = re.compile(r'^\.[A-Z]+ |\\f[A-Z]|\\&|"|\\(?=-)', re.MULTILINE)


@dataclass(frozen=True)
class Paragraph:
    """One paragraph of the Debian Reference in English and in another language."""

    language: str
    chapter: str
    number: int
    english: str
    other: str

    @property
    def is_copy(self) -> bool:
        return self.english == self.other

    @property
    def is_translated(self) -> bool:
        """True if most words are new; false for a table's caption with its first word translated, and the like."""
        if self.language in ("ja", "zh"):
            han, latin = len(_HAN.findall(self.other)), len(_LATIN.findall(self.other))
            return han > 0 and han >= 2 * latin
        english, other = (set(_WORD.findall(text.lower())) for text in (self.english, self.other))
        return len(other - english) > len(other & english)


@dataclass(frozen=True)
class Pair:
    """A good pair of English texts: `source` is the page of the library, or the section of the manual."""

    source: str
    query: str
    passage: str


def aligned() -> list[Paragraph]:
    """Return the paragraphs of all languages, of the chapters that have equally many in both."""
    found = []
    for file in sorted((SHARE / "debian-reference").glob("*.en.html")):
        chapter = file.name.removesuffix(".en.html")
        english = _paragraphs(file)
        for language in LANGUAGES:
            other = _paragraphs(file.with_name(f"{chapter}.{_FILES.get(language, language)}.html"))
            if len(other) == len(english):
                found += [
                    Paragraph(language, chapter, number, *texts)
                    for number, texts in enumerate(zip(english, other, strict=True))
                ]
    return found


def untranslated(paragraphs: list[Paragraph]) -> set[Paragraph]:
    """Return the copies that are prose: those that were translated into some other language.

    A copy in each language is a path, a name, or too new for every translator, and its language is no truth.
    """
    prose = {(each.chapter, each.number) for each in paragraphs if each.is_translated}
    return {each for each in paragraphs if each.is_copy and (each.chapter, each.number) in prose}


def signatures() -> Iterator[Pair]:
    """Yield the functions, classes and methods of Python's library with the first paragraph about them."""
    for file in sorted((SHARE / "doc" / "python3.11" / "html" / "library").glob("*.html")):
        for signature, paragraph in _SIGNATURE.findall(file.read_text(encoding="utf-8")):
            yield Pair(file.stem, _plain(signature).removesuffix("¶"), _plain(paragraph))


def manual_pages() -> Iterator[Pair]:
    """Yield the name of each manual page in English with the line about it."""
    for file in sorted((SHARE / "man").glob("man*/*.gz")):
        text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
        for names, line in _NAME.findall(text):
            yield Pair(file.parent.name, *(" ".join(_ROFF.sub("", each).split()) for each in (names, line)))


def _paragraphs(file: Path) -> list[str]:
    return [_plain(found) for found in _PARAGRAPH.findall(file.read_text(encoding="utf-8"))]


def _plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())
