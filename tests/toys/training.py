"""The smallest model, loss and data that the trainer takes: a table of words with dropout, and pairs of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn

from pipeline.train.data import TrainingData
from pipeline.train.trainer import Parts

_WORDS, _WIDTH = 97, 16


class Words(nn.Module):
    """Means of the vectors of words.

    Attributes:
        most_tokens: Tokens at once that "fit into memory"; None for any number.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(_WORDS, _WIDTH)
        self.frozen = nn.Linear(_WIDTH, _WIDTH).requires_grad_(False)
        self.last = nn.Linear(_WIDTH, _WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.most_tokens: int | None = None

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        mask = features["attention_mask"]
        if self.most_tokens is not None and int(mask.sum()) > self.most_tokens:
            raise MemoryError
        states = self.dropout(self.last(self.frozen(self.table(features["input_ids"])))) * mask[..., None]
        return {**features, "sentence_embedding": nn.functional.normalize(states.sum(1), dim=1)}

    def save(self, *_: Any, **__: Any) -> None:
        raise AssertionError("no model is built or written through a folder")


@dataclass(frozen=True)
class Pairs:
    """A source of pairs, of which the passage has the same words in another order, and negatives."""

    name: str
    rows: int
    negatives: int = 0
    weight: float = 1.0

    def hashes(self, column: str) -> np.ndarray:
        return np.arange(self.rows) + (10**6 if column == "passage" else 0)

    def take(self, rows: np.ndarray) -> pa.Table:
        return pa.table({"row": rows, "query": [f"query {row}" for row in rows]})


def collate(batch: tuple[Any, pa.Table]) -> dict[str, Any]:
    source, rows = batch
    found: dict[str, Any] = {"dataset_name": source.name}
    for number, column in enumerate(["query", "passage", *(f"negative_{n}" for n in range(source.negatives))]):
        places = torch.arange(5)[None] * (1 + number) + torch.tensor(rows["row"].to_numpy())[:, None]
        found[f"{column}_input_ids"] = places * 7 % _WORDS
        found[f"{column}_attention_mask"] = (torch.arange(5)[None] < 3 + places[:, :1] % 3).long()
    return found


class Loss(nn.Module):
    """The contrastive loss, by name: a loss inside another."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.own = CachedMultipleNegativesRankingLoss(model, mini_batch_num_tokens=64, gather_across_devices=True)

    def forward(self, sentence_features: Any, labels: Any) -> dict[str, Tensor]:
        return {"nce": self.own(sentence_features, labels)}


def parts(*sources: Any, dropout: float = 0.1) -> Parts:
    """Return the parts of a training; the same at every call."""
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[Words(dropout)], device="cpu")
    data = TrainingData(sources or (Pairs("a.first", 40), Pairs("second", 24, negatives=2)), Path(), "", {})
    return Parts(model, {source.name: Loss(model) for source in data.sources}, data, collate)
