"""The smallest model that losses take: means of the vectors of words in float64, and texts as rows of numbers of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

WORDS, WIDTH, LATE_WIDTH, LONGEST = 40, 16, 8, 6


class Means(nn.Module):
    """A model with dense vectors; with `late`, also with one vector a token."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.projector = nn.Linear(WIDTH, LATE_WIDTH) if late else None

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        mask = features["attention_mask"][..., None]
        states = self.table(features["input_ids"]) * mask
        found = {**features, "sentence_embedding": normalize(states.sum(1), dim=-1)}
        if self.projector is not None:
            found["token_embeddings"] = normalize(self.projector(states), dim=-1) * mask
        return found

    def get_embedding_dimension(self) -> int:
        return WIDTH


def model(dtype: torch.dtype = torch.float64, *, late: bool = False) -> SentenceTransformer:
    """Return the model; the same at every call."""
    torch.manual_seed(0)
    return SentenceTransformer(modules=[Means(late=late).to(dtype)], device="cpu")


def texts(*seeds: int) -> dict[str, Tensor]:
    """Return a column of texts, one for each seed; equal seeds are equal texts. Lengths differ."""
    rows = torch.zeros(len(seeds), LONGEST, dtype=torch.int64)
    mask = torch.zeros_like(rows)
    for row, seed in enumerate(seeds):
        words = torch.randint(1, WORDS, (2 + seed % (LONGEST - 1),), generator=torch.Generator().manual_seed(seed))
        rows[row, : len(words)] = words
        mask[row, : len(words)] = 1
    return {"input_ids": rows, "attention_mask": mask, "text_hash": torch.tensor(seeds) * 7_777_777_777}


def columns(count: int, rows: int = 7) -> list[dict[str, Tensor]]:
    """Return columns of texts that all differ."""
    return [texts(*range(number * rows, (number + 1) * rows)) for number in range(count)]


def vectors(of: nn.Module, features: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Return the dense vectors of each column, with a graph: no cache, no mini-batches."""
    return [of(dict(column))["sentence_embedding"] for column in features]
