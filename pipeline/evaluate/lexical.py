"""Lexical baselines: what words alone find.

BM25 (bm25s, of the extra `evaluate`) is the baseline of retrieval, with k1 1.5 and b 0.75, over lower-case words. Words are
neither stemmed nor left out, and each Chinese or Japanese character is a word, since no spaces divide these. The share of
words in common is the baseline of other comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.schema import ID, KEPT_TEXT
from actors.vectors import Floats
from pipeline.evaluate.result import Measured
from pipeline.quality.bootstrap import Values
from pipeline.quality.judged import Judged
from pipeline.quality.retrieval import Search, measure
from pipeline.search.search import Searcher

_NAME = "BM25"
MOST = 1_000_000  # documents that are indexed, in memory
HASHES = 1024  # dimensions of counts of words
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = rf"[{_SIGNS}]|[^\W{_SIGNS}]+"


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(_WORD, text.lower())


def words_in_common(first: Sequence[str], second: Sequence[str]) -> Values:
    """Return the share of words that two texts have in common, of all their words, float64 [pairs]."""
    words = [[set(words_of(text)) for text in texts] for texts in (first, second)]
    return np.array([len(a & b) / max(1, len(a | b)) for a, b in zip(*words, strict=True)], np.float64)


def all_in_common(first: Sequence[str], second: Sequence[str]) -> Values:
    """Return the share of words that each text of `first` has in common with each of `second`, float64 [first, second]."""
    places: dict[str, list[int]] = {}
    sizes = np.zeros(len(second), np.int64)
    for row, text in enumerate(second):
        words = set(words_of(text))
        sizes[row] = len(words)
        for word in words:
            places.setdefault(word, []).append(row)
    shares, found = np.zeros((len(first), len(second))), {word: np.array(rows) for word, rows in places.items()}
    for row, text in enumerate(first):
        words = set(words_of(text))
        for word in words & found.keys():
            shares[row, found[word]] += 1
        shares[row] /= np.maximum(1, len(words) + sizes - shares[row])
    return shares


def hashed_words(texts: Sequence[str]) -> Floats:
    """Return the words of texts as vectors, float32 [texts, 1024]: a word is counted in the dimension of its hash."""
    vectors = np.zeros((len(texts), HASHES), np.float32)
    for row, text in enumerate(texts):
        np.add.at(vectors[row], [crc32(word.encode("utf-8", "replace")) % HASHES for word in words_of(text)], 1)
    np.log1p(vectors, out=vectors)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def bm25(searcher: Searcher, judged: Judged, corpus: pa.Table | None) -> Measured | str:
    """Return what BM25 finds among the documents of a table, or why it is left out.

    Args:
        searcher: The table.
        judged: The queries.
        corpus: `ID` and `KEPT_TEXT` of documents; None: the texts that the table keeps.
    """
    if find_spec("bm25s") is None:
        return "there is no row of BM25: install it with pip install 'vectide[evaluate]'"
    if corpus is None and KEPT_TEXT not in searcher.scan.schema.names:
        return "there is no row of BM25: the table keeps no texts; give them by --corpus, or set table.keep_text in its job"
    if (count := searcher.scan.rows) > MOST:
        return f"there is no row of BM25: it is computed for up to {MOST:,} rows, and the table has {count:,}"
    if corpus is None:
        documents = pa.concat_tables(searcher.scan.columns([ID, KEPT_TEXT]))
    else:
        there = pa.chunked_array([chunk for part in searcher.scan.ids() for chunk in part.chunks], pa.string())
        documents = corpus.filter(pc.is_in(corpus[ID], value_set=there))
        if not documents.num_rows:
            return "there is no row of BM25: the table has none of the documents of the corpus, by their ids"
    search, queries = bm25_search(documents), [*judged.queries.values()]
    if search is None:
        return "there is no row of BM25: no document has a word"
    return Measured(_NAME, measure(judged, pa.array(queries, pa.string()), search))


def bm25_search(documents: pa.Table) -> Search | None:
    """Return a search whose queries are texts over documents, `ID` and `KEPT_TEXT`; None if none of these has a word."""
    ids, texts = documents[ID], pc.fill_null(documents[KEPT_TEXT], "").to_pylist()
    index = _index(texts)
    if index is None:
        return None

    def search(queries: pa.Array, k: int) -> pa.Table:
        from pipeline.scan.top_k import QUERY, SCORE  # importing torch takes seconds

        asked = [words_of(query) for query in queries.to_pylist()]
        rows, scores = index.retrieve(asked, k=min(k, len(texts)), show_progress=False)
        of_query, places = np.nonzero(scores > 0)
        found = ids.take(pa.array(rows[of_query, places]))
        return pa.table([pa.array(of_query), pa.array(scores[of_query, places]), found], [QUERY, SCORE, ID])

    return search


def _index(texts: Sequence[str]) -> Any:  # bm25s publishes no types
    import bm25s

    words = [words_of(text) for text in texts]
    if not any(words):
        return None
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index
