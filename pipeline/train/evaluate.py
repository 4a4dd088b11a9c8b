"""Held-out evaluation: nDCG@10 of judged queries while a model trains, early stopping, and the comparison afterwards.

All documents are encoded, and each query is compared with each of them. The files are those of `vectide evaluate` and of the
quality gate: a corpus (`id`, `text`), queries (`id`, `text`) and judgements (`query`, `doc`, optionally `relevance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from actors.errors import DataError
from actors.source.content_hash import content_hashes
from actors.vectors import Floats
from pipeline.quality.bootstrap import Difference, Interval, Values, mean_difference, mean_interval
from pipeline.quality.judged import Judged, read_corpus, read_judged
from pipeline.quality.metrics import MAIN, retrieval_values

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from actors.encoders.encoder import Encoder
    from pipeline.job.training import HeldOut as Settings

_DEPTH = 10  # documents of a query that nDCG@10 counts
_PRODUCTS = 1 << 24  # scores in memory at a time
_TEXTS = 256  # encoded at a time while a model trains

Side = Literal["query", "document"]
# Returns vectors of unit length, float32 [texts, dim].
Encode = Callable[[Sequence[str], Side], Floats]


@dataclass(frozen=True, slots=True)
class Comparison:
    """nDCG@10 of the same held-out queries before and after a training, with 95 % intervals.

    Attributes:
        queries: Number of queries.
        documents: Number of documents that each query was compared with.
    """

    before: Interval
    after: Interval
    difference: Difference
    queries: int
    documents: int

    def __str__(self) -> str:
        """Return both scores, and the interval of their difference in brackets."""
        low, high = self.difference.low, self.difference.high
        return f"{MAIN} before {self.before.value:.4f} after {self.after.value:.4f} [{low:+.4f}, {high:+.4f}]"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Judged queries with all documents that they are compared with; see `read_held_out`.

    Attributes:
        notes: A sentence for each kind of query or document that does not count as others do.
    """

    judged: Judged
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def text_hashes(self) -> frozenset[bytes]:
        """Content hashes of the queries, 16 bytes each: a pair to train on may have none of these texts."""
        texts = pa.array([*self.judged.queries.values()], pa.string())
        return frozenset(bytes.fromhex(digest) for digest in content_hashes(texts).to_pylist())

    def measure(self, model: SentenceTransformer, step: int) -> float:
        """Return the mean nDCG@10 of a model that is being trained, 0 to 1.

        The model is put into evaluation mode and back. No random number is drawn.

        Args:
            model: Its first module is a `pipeline.train.module.EmbeddingModule`.
            step: Steps done, for the error.

        Raises:
            DataError: a vector is not finite.
        """
        return float(self.values(in_training(model), f"step {step}").mean())

    def values(self, encode: Encode, where: str) -> Values:
        """Return nDCG@10 of each query, float64 [queries] in the order of the judgements.

        Args:
            encode: Encodes queries and documents.
            where: Name of the model, for the error.

        Raises:
            DataError: a vector is not finite.
        """
        queries = encode([*self.judged.queries.values()], "query")
        documents = encode(self.texts, "document")
        for what, vectors in (("query", queries), ("document", documents)):
            if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
                raise DataError(
                    f"{where}: the vector of {what} {bad[0]} of the held-out data is not finite ({len(bad):,} are not); "
                    "lower train.learning_rate"
                )
        found: dict[str, dict[str, float]] = {}
        names, width = [*self.judged.judgements], max(1, _PRODUCTS // len(self.ids))
        for start in range(0, len(names), width):
            scores = queries[start : start + width] @ documents.T
            best = np.argpartition(-scores, min(_DEPTH, scores.shape[1]) - 1, axis=1)[:, :_DEPTH]
            for name, row, numbers in zip(names[start : start + width], scores, best, strict=True):
                found[name] = {self.ids[number]: float(row[number]) for number in numbers}
        return retrieval_values(self.judged.judgements, found)[MAIN]

    def compare(self, before: Encode, after: Encode) -> Comparison:
        """Return nDCG@10 of two models with the paired bootstrap of the difference.

        Raises:
            DataError: a vector is not finite.
        """
        old, new = self.values(before, "before the training"), self.values(after, "after the training")
        return Comparison(
            mean_interval(old),
            mean_interval(new),
            mean_difference(new, old),
            len(self.judged.judgements),
            len(self.ids),
        )


def read_held_out(settings: Settings) -> HeldOut:
    """Read the files that `train.evaluate` names.

    Raises:
        ConfigError: a file does not exist or lacks a column, or the extra `quality` is not installed.
        DataError: as for `read_judged` and `read_corpus`, or no judged document is in the corpus.
    """
    options = tuple(f"train.evaluate.{name}" for name in ("queries", "judgements", "corpus"))
    judged = read_judged(settings.queries, settings.judgements, options=(options[0], options[1]))
    corpus = read_corpus(settings.corpus, options[2])
    present, wanted = judged.count_present([corpus["id"]], "the corpus")
    notes = judged.notes
    if present < wanted:
        notes += (f"{wanted - present:,} judged documents are not in the corpus and cannot be found",)
    return HeldOut(judged, tuple(corpus["id"].to_pylist()), tuple(corpus["text"].to_pylist()), notes)


def of_encoder(encoder: Encoder, tasks: Sequence[str] = ()) -> Encode:
    """Return the function that encodes with a loaded encoder: documents with its task, queries with the one for queries.

    Args:
        encoder: The encoder.
        tasks: Trained adapters; of two, the first is for queries.
    """

    def encode(texts: Sequence[str], side: Side) -> Floats:
        if side == "query":
            return encoder.encode(texts, tasks[0] if len(tasks) > 1 else encoder.spec.query_side().task)
        return encoder.encode(texts, encoder.spec.task)

    return encode


def in_training(model: SentenceTransformer) -> Encode:
    """Return the function that encodes with a model that is being trained, each side with its task and its prompt."""
    import torch

    from pipeline.train.prompts import prompts_of

    module: Any = model[0]
    prompts = dict(zip(("query", "document"), prompts_of(module.twin.spec, module.tasks), strict=True))

    def encode(texts: Sequence[str], side: Side) -> Floats:
        task = 0 if side == "query" else len(module.tasks) - 1  # one adapter has both sides
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors: Any = [None] * len(texts)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(order), _TEXTS):
                    rows = order[start : start + _TEXTS]
                    features = module.preprocess([prompts[side] + texts[row] for row in rows])
                    features = {name: value.to(model.device) for name, value in features.items()}
                    features["task"] = torch.full((len(rows),), task if module.tasks else -1, device=model.device)
                    found = module(features)["sentence_embedding"].float().cpu().numpy()
                    for row, vector in zip(rows, found, strict=True):
                        vectors[row] = vector
        finally:
            model.train(was_training)
        return np.stack(vectors)

    return encode


@dataclass(slots=True)
class EarlyStopping:
    """Decides when a training stops: after so many evaluations in a row without a better score.

    Attributes:
        patience: Number of these evaluations.
        best: Best score so far; None before the first.
        best_step: Step of the best score.
        waited: Evaluations since the best one.
        scores: All scores by step, for the report.
    """

    patience: int
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    scores: dict[int, float] = field(default_factory=dict)

    def update(self, step: int, score: float) -> bool:
        """Record a score, and return whether the training shall stop. A step that was recorded before is replaced.

        The score of step 0, before the training, counts as the others do.
        """
        self.scores[step] = score
        if self.best is None or score > self.best:
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    @property
    def is_best(self) -> bool:
        """True if the last score is the best one."""
        return self.waited == 0 and self.best is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, for a checkpoint."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "scores": [[step, score] for step, score in self.scores.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the state of a checkpoint."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
        self.scores = {int(step): float(score) for step, score in state["scores"]}
