"""Reads WordNet 3.0: its sets of synonyms, each with a definition and examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.race.peers import ROOT

# Where `make test-data` puts Debian's wordnet-base, and where Debian itself does.
PLACES = (ROOT / ".venvs" / "data" / "usr" / "share" / "wordnet", Path("/usr/share/wordnet"))


class Synset(NamedTuple):
    """A set of synonyms.

    Attributes:
        name: Part of speech and offset.
        lemmas: The synonyms; several words have underscores between them.
        gloss: The definition and examples in quotes.
    """

    name: str
    lemmas: list[str]
    gloss: str


def find_wordnet() -> Path | None:
    """Return the folder of WordNet, if it is on this machine."""
    return next((place for place in PLACES if (place / "data.noun").is_file()), None)


def synsets(folder: Path) -> Iterator[Synset]:
    """Yield all sets of synonyms of a folder with `data.noun` and so on (the format is that of wndb(5WN))."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin-1").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            words = fields.split()
            lemmas = [word.partition("(")[0] for word in words[4 : 4 + 2 * int(words[3], 16) : 2]]
            yield Synset(f"{part}-{words[0]}", lemmas, gloss)
