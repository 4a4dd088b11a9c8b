"""The baseline of tasks of mteb: words alone, in place of a model.

Retrieval has BM25, and all other tasks compare counts of words as vectors. Imports mteb, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.search_wrappers import SearchEncoderWrapper
from mteb.types import PromptType

from actors.errors import DataError
from actors.schema import ID, KEPT_TEXT
from actors.vectors import Floats
from pipeline.evaluate.lexical import HASHES, MOST, bm25_search, hashed_words
from pipeline.evaluate.mteb_model import Found, batches
from pipeline.quality.retrieval import Search, nearest_documents


class WordsJudged(AbsEncoder):
    """Words alone, for all tasks of texts: mteb's `AbsEncoder` and `SearchProtocol`."""

    mteb_model_meta: ModelMeta

    def __init__(self) -> None:
        facts = {"name": "vectide/words", "revision": "1", "embed_dim": HASHES, "modalities": ["text"]}
        self.mteb_model_meta = ModelMeta.create_empty({**facts, "similarity_fn_name": ScoringFunction.COSINE})
        self._search: Search | None = None
        self._reranker = SearchEncoderWrapper(self)

    def encode(self, inputs: Any, **_: Any) -> Floats:
        """Return the words of texts as vectors, float32 [texts, dim]. Called by mteb."""
        return hashed_words([text for batch in inputs for text in batch["text"]])

    def index(self, corpus: Any, *, task_metadata: Any, **others: Any) -> None:
        """Index the documents. Called by mteb before `search`.

        Raises:
            DataError: there are too many, or none has a word.
        """
        self._search = None
        if task_metadata.type.endswith("Reranking"):
            self._reranker.index(corpus, task_metadata=task_metadata, **others)
            return
        if len(corpus) > MOST:
            raise DataError(f"it is computed for up to {MOST:,} documents, and there are {len(corpus):,}")
        parts = [pa.table([*part], [ID, KEPT_TEXT]) for part in batches(corpus, task_metadata, PromptType.document)]
        self._search = bm25_search(pa.concat_tables(parts))
        if self._search is None:
            raise DataError("no document has a word")

    def search(self, queries: Any, *, task_metadata: Any, top_k: int, **others: Any) -> Found:
        """Return the scores of the documents that BM25 finds for each query, by id. Called by mteb after `index`."""
        if self._search is None:
            found: Found = self._reranker.search(queries, task_metadata=task_metadata, top_k=top_k, **others)
            return found
        found = {}
        for ids, texts in batches(queries, task_metadata, PromptType.query):
            found.update(zip(ids, nearest_documents(self._search, pa.array(texts, pa.string()), top_k), strict=True))
        return found
