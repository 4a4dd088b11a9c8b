"""A model, or a table, as mteb evaluates it: mteb is the judge, we are the encoder and the search.

Imports mteb, which takes seconds, so nothing but the evaluation of mteb's tasks may import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import datasets
import pyarrow as pa
from mteb._create_dataloaders import create_dataloader
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.search_wrappers import SearchEncoderWrapper
from mteb.types import PromptType

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError
from actors.schema import ID
from actors.vectors import Floats, dense
from pipeline.evaluate.embedded import EmbeddedTexts
from pipeline.evaluate.table import late
from pipeline.quality.retrieval import nearest_documents
from pipeline.run.routing import task_of
from pipeline.run.text_tables import PICTURE, TEXT, safe
from pipeline.search.search import Searcher

_PART = 50_000  # documents of a file
_PICTURES = 128  # of a file
_QUERIES = 4096  # of one pass over the documents

Found = dict[str, dict[str, float]]
# Called with the name of a task, its subset and split, and the scores of the documents found.
Keep = Callable[[str, str, str, Found], None]


def meta_of(spec: ModelSpec, name: str | None, changed: Mapping[str, Any]) -> ModelMeta:
    """Return what mteb records of a model.

    Args:
        spec: The model.
        name: Its name; None: that on the hub, or of its folder.
        changed: Its settings that are not the defaults. Results with such settings are apart from the others.
    """
    return ModelMeta.create_empty(
        {
            "name": name or (spec.model if spec.revision is not None else f"local/{safe(spec.model)}"),
            "revision": spec.revision or spec.weights_sha256[:12],
            "max_tokens": spec.max_tokens,
            "embed_dim": spec.dim,
            "modalities": ["text"] if spec.pictures is None else ["text", "image"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "experiment_kwargs": dict(changed) or None,
        }
    )


class TableSearch:
    """A table as it is, for tasks of retrieval: mteb's `SearchProtocol`. Only the queries are encoded.

    Args:
        searcher: The table.
        keep: Receives what was found.

    Attributes:
        notes: Sentences about documents that the table lacks.
    """

    def __init__(self, searcher: Searcher, keep: Keep) -> None:
        self._searcher, self._keep = searcher, keep
        name = f"table/{safe(searcher.url)}-version-{searcher.version}"
        self.mteb_model_meta = meta_of(searcher.spec, name, {})
        self.notes: list[str] = []
        self._corpus: set[str] = set()

    def index(self, corpus: Any, *, task_metadata: Any, **_: Any) -> None:
        """Check that the table has the documents. Called by mteb before `search`."""
        self._corpus = set(corpus["id"])
        wanted = pa.array(self._corpus, pa.string())
        present = {
            row_id for part in self._searcher.scan.ids() for row_id in part.to_pylist() if row_id in self._corpus
        }
        if not present:
            raise ConfigError(
                f"{self._searcher.url!r} has no document of {task_metadata.name}, whose ids are such as {wanted[0].as_py()!r}. "
                f"Embed its documents with these ids, or name the model with --model and leave the table out"
            )
        if len(present) < len(self._corpus):
            missing = f"{len(self._corpus) - len(present):,} of {len(self._corpus):,} documents"
            self.notes.append(f"{missing} of {task_metadata.name} are not in {self._searcher.url}")

    def search(
        self, queries: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, top_k: int, **others: Any
    ) -> Found:
        """Return the scores of the nearest documents of each query, by id. Called by mteb after `index`."""
        if others.get("top_ranked") is not None:
            raise ConfigError(
                f"{task_metadata.name} ranks given documents again; evaluate it with --model, not a table"
            )
        found: Found = {}
        for ids, texts in batches(queries, task_metadata, PromptType.query):
            scores = _nearest(self._searcher, texts, top_k, self._searcher.encode, self._corpus)
            found.update(zip(ids, scores, strict=True))
        self._keep(task_metadata.name, hf_subset, hf_split, found)
        return found


class ModelJudged(AbsEncoder):
    """A model for all tasks of texts, and those of finding pictures by texts: mteb's `AbsEncoder` and `SearchProtocol`.

    Texts and pictures are embedded by backfills.

    Args:
        texts: Embeds them.
        keep: Receives what was found in tasks of retrieval.
    """

    mteb_model_meta: ModelMeta

    def __init__(self, texts: EmbeddedTexts, keep: Keep) -> None:
        self._texts, self._keep = texts, keep
        self.mteb_model_meta = meta_of(texts.spec, None, texts.changed)
        self._searcher: Searcher | None = None
        self._reranker = SearchEncoderWrapper(self)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Floats:
        """Return the vectors of texts, float32 [texts, dim]. Called by mteb."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self._texts.vectors(texts, self._task(task_metadata, prompt_type), f"{task_metadata.name}-texts")

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **others: Any) -> None:
        """Embed the documents. Called by mteb before `search`."""
        self._searcher = None
        if task_metadata.type.endswith("Reranking"):
            self._reranker.index(corpus, task_metadata=task_metadata, hf_split=hf_split, hf_subset=hf_subset, **others)
            return
        task = self._task(task_metadata, PromptType.document)
        if has_pictures(task_metadata):
            name = f"{task_metadata.name}-{hf_split}-{_digest(corpus)}"  # subsets ask about the same pictures
            self._searcher = self._texts.documents(_pictures(corpus), task, name, pictures=True)
            return
        parts = (
            pa.table([pa.array(ids, pa.string()), pa.array(texts, pa.string())], [ID, TEXT])
            for ids, texts in batches(corpus, task_metadata, PromptType.document)
        )
        self._searcher = self._texts.documents(parts, task, f"{task_metadata.name}-{hf_subset}-{hf_split}-documents")

    def search(
        self, queries: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, top_k: int, **others: Any
    ) -> Found:
        """Return the scores of the nearest documents of each query, by id. Called by mteb after `index`."""
        if self._searcher is None:
            names = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
            found: Found = self._reranker.search(queries, top_k=top_k, **names, **others)
        else:
            found = {}
            task = self._task(task_metadata, PromptType.query)

            def encode(texts: list[str]) -> pa.Array:
                vectors = self._texts.vectors(texts, task, f"{task_metadata.name}-texts")
                return dense(vectors).cast(self._texts.dense.type)

            for ids, texts in batches(queries, task_metadata, PromptType.query):
                found.update(zip(ids, _nearest(self._searcher, texts, top_k, encode), strict=True))
        self._keep(task_metadata.name, hf_subset, hf_split, found)
        return found

    def _task(self, task_metadata: Any, prompt_type: PromptType | None) -> str | None:
        code = any(language.endswith("-Code") for language in task_metadata.eval_langs) or (
            "Programming" in (task_metadata.domains or ())
        )
        document = prompt_type == PromptType.document
        return task_of(self._texts.spec, task_metadata.type, document=document, code=code)


def has_pictures(task_metadata: Any) -> bool:
    """Return whether the documents of a task are pictures; the texts beside them are not embedded."""
    return "image" in task_metadata.modalities and "i" in (task_metadata.category or "").partition("2")[2]


def _nearest(
    searcher: Searcher,
    texts: list[str],
    top_k: int,
    encode: Callable[[list[str]], pa.Array],
    among: set[str] | None = None,
) -> list[dict[str, float]]:
    """Return the nearest documents of queries, by late interaction where the table has many vectors a row."""
    if searcher.scan.multi is not None:
        return nearest_documents(late(searcher, texts), pa.array(range(len(texts))), top_k, among=among)
    return nearest_documents(searcher.nearest, encode(texts), top_k, among=among)


def batches(rows: Any, task_metadata: Any, side: PromptType) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the ids and texts of documents or queries in parts, as mteb gives them to a model."""
    size = _PART if side == PromptType.document else _QUERIES
    for batch in create_dataloader(rows, task_metadata=task_metadata, prompt_type=side, batch_size=size):
        yield list(batch["id"]), list(batch["text"])


def _files(corpus: Any) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """Yield the ids and the picture files of documents in parts; no picture is decoded."""
    for batch in corpus.cast_column("image", datasets.Image(decode=False)).iter(_PICTURES):
        yield list(batch["id"]), list(batch["image"])


def _pictures(corpus: Any) -> Iterator[pa.Table]:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for ids, files in _files(corpus):
        yield pa.table([pa.array(ids, pa.string()), pa.array(files, kind)], [ID, PICTURE])


def _digest(corpus: Any) -> str:
    """Return a hash of the ids and pictures of documents."""
    found = blake2b(digest_size=8)
    for ids, files in _files(corpus):
        for row_id, file in zip(ids, files, strict=True):
            found.update(f"{row_id}\0{file['path']}\0".encode())
            found.update(blake2b(file["bytes"] or b"").digest())
    return found.hexdigest()
