"""Pairs to train on, and held-out entries to measure by: a reverse dictionary, and signatures of Python.

- Reverse dictionary: the query is a gloss of WordNet 3.0 (Debian's wordnet-base; `make test-data` fetches it), the passage
  the lemmas of its synset. A gloss that contains one of its lemmas is left out, and so are repeated glosses and lemmas.
- Signatures: the query is the first sentence of a docstring, the passage the signature. Every machine has them: they are
  those of the standard library and of installed packages.
"""

from __future__ import annotations

import ast
import inspect
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.docstrings import PACKAGES, sources
from benchmarks.wordnet import synsets

_LEAST_WORDS = 3  # of a query
_EXAMPLE = re.compile(r'\s*[;:,]?\s*"[^"]*"?.*$')
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|$)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A query and its passage; `source` is what entries are held out by."""

    id: str
    source: str
    query: str
    passage: str


@dataclass(frozen=True)
class Files:
    """The files of an experiment.

    Attributes:
        pairs: Pairs to train on: `id`, `query`, `passage`.
        documents: Their passages: `id`, `text`.
        corpus, queries, judgements: The held-out entries, as `vectide evaluate` takes them.
    """

    pairs: Path
    documents: Path
    corpus: Path
    queries: Path
    judgements: Path


def glosses(folder: Path) -> list[Entry]:
    """Return the entries of WordNet, each gloss and each list of lemmas once."""
    return _distinct(_glosses(folder))


def signatures() -> list[Entry]:
    """Return the functions and methods of this Python and of installed packages, each sentence and signature once."""
    stdlib, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    found = (each for root, tops in ((stdlib, None), (packages, PACKAGES)) for each in sources(root, tops))
    return _distinct(entry for module, path in found for entry in _signatures(module, path))


def split(entries: Sequence[Entry], held_out: int, train: int, *, seed: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Return entries to train on and held-out ones, of different sources, in a random order.

    Raises:
        ValueError: there are fewer than `train` and `held_out` ones.
    """
    order = sorted({entry.source for entry in entries})
    random.Random(seed).shuffle(order)
    place = {source: number for number, source in enumerate(order)}
    ordered = sorted(entries, key=lambda entry: (place[entry.source], entry.id))
    first, cut = ordered[:held_out], ordered[held_out - 1].source if held_out <= len(ordered) else None
    rest = [entry for entry in ordered[held_out:] if entry.source != cut]
    if len(first) < held_out or len(rest) < train:
        raise ValueError(
            f"{len(entries):,} entries are too few for {held_out:,} held-out ones and {train:,} to train on"
        )
    random.Random(seed + 1).shuffle(rest)
    return rest[:train], first


def write(folder: Path, train: Sequence[Entry], held_out: Sequence[Entry]) -> Files:
    """Write the files of an experiment into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(*(folder / f"{name}.parquet" for name in Files.__dataclass_fields__))
    columns = {
        files.pairs: {"id": "id", "query": "query", "passage": "passage"},
        files.documents: {"id": "id", "text": "passage"},
        files.corpus: {"id": "id", "text": "passage"},
        files.queries: {"id": "id", "text": "query"},
        files.judgements: {"query": "id", "doc": "id"},
    }
    for path, names in columns.items():
        entries = train if path in (files.pairs, files.documents) else held_out
        pq.write_table(
            pa.table({column: [getattr(each, name) for each in entries] for column, name in names.items()}), path
        )
    return files


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    seen, kept = set[str](), []
    for entry in entries:
        names = {f"{name}: {getattr(entry, name).lower()}" for name in ("id", "query", "passage")}
        if len(entry.query.split()) >= _LEAST_WORDS and not names & seen:
            kept.append(entry)
        seen |= names
    return kept


def _glosses(folder: Path) -> Iterator[Entry]:
    for synset in synsets(folder):
        lemmas = [lemma.replace("_", " ") for lemma in synset.lemmas]
        meaning = _EXAMPLE.sub("", synset.gloss).strip(" ;")
        low = _spaced(meaning)
        if not any(_spaced(lemma) in low for lemma in lemmas):
            yield Entry(synset.name, synset.name, meaning, ", ".join(dict.fromkeys(lemmas)))


def _spaced(text: str) -> str:
    """Return the words of a text in lower case, with a space on each side of each."""
    return f" {' '.join(_WORD.findall(text.lower()))} "


def _signatures(module: str, path: Path) -> Iterator[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template, or a file for another Python
        return
    owners: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for owner in owners:
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").partition("\n\n")[0]
            if (found := _SENTENCE.match(text)) is not None:
                prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
                name = f"{prefix}{node.name}({ast.unparse(node.args)})"
                yield Entry(f"{module}:{prefix}{node.name}", module, " ".join(found[0].split()), name)
