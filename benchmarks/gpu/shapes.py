"""The measured shapes: their sizes, checkpoints and operation counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v2 import write_jina_v2
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.checkpoints.jina_v4.vision import PUBLISHED_VISION

POOLING = {"word_embedding_dimension": 0, "pooling_mode_mean_tokens": True}
_V4_RANK = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes.

    Attributes:
        family: "bert", "v2" (ALiBi and GEGLU), "v3" (rotary positions; without a task, so without its adapters), "v3
            adapters" (with one, as it is used), "v4" (causal, shared heads, SwiGLU; one task's adapter merged), "v4
            adapters" (one used beside the base) or "v4 pages" (the same with a vision tower).
        groups: Heads of key and value; None is as many as those of the query.
        share: Part of the tokens that is enough to time it.
    """

    name: str
    family: Literal["bert", "v2", "v3", "v3 adapters", "v4", "v4 adapters", "v4 pages"]
    layers: int
    hidden: int
    heads: int
    inner: int
    groups: int | None = None
    share: float = 1.0

    @property
    def task(self) -> str | None:
        """The task of its encoder. v4 requires one."""
        return {"v4": "passage", "bert": None, "v2": None, "v3": None}.get(self.family, "retrieval.passage")

    def operations(self, lengths: Sequence[int]) -> float:
        """Floating point operations of its matrix products over texts of these lengths, padding and adapters not counted."""
        ups = 2 if self.family[:2] in ("v2", "v4") else 1  # gated units go up twice
        shared = (self.groups or self.heads) / self.heads
        weights = (2 + 2 * shared) * self.hidden**2 + (ups + 1) * self.hidden * self.inner
        # Where a token sees only those before it, half of the scores are none.
        seen = 0.5 if self.family.startswith("v4") else 1.0
        squares = sum(length * length for length in lengths)
        return float(self.layers * (2 * weights * sum(lengths) + 4 * seen * self.hidden * squares))

    def write(self, folder: Path, *, tokenizer: str | Tokenizer = "letters") -> Path:
        """A checkpoint of random weights; of v4 in bfloat16, since 3 billion would take twice the memory in float32.

        Args:
            folder: Where to write it.
            tokenizer: Of a BERT: its name in `tests.checkpoints`, or the tokenizer itself.
        """
        sizes: dict[str, Any] = {
            "hidden": self.hidden, "layers": self.layers, "heads": self.heads, "inner": self.inner,
        }  # fmt: skip
        if self.family == "v2":
            return write_jina_v2(folder, **sizes)
        if self.family.startswith("v3"):
            return write_jina_v3(folder, layout="native", **sizes)
        if self.family.startswith("v4"):
            return write_jina_v4(
                folder,
                merged="retrieval" if self.family == "v4" else None,
                groups=self.groups or self.heads,
                vision=PUBLISHED_VISION if self.family == "v4 pages" else None,
                rank=_V4_RANK,
                alpha=_V4_RANK,
                dtype=torch.bfloat16,
                **sizes,
            )
        pooling = {**POOLING, "word_embedding_dimension": self.hidden}
        return write_bert(folder, positions=512, max_tokens=512, pooling=pooling, tokenizer=tokenizer, **sizes)


# In the order of what a first look at a GPU is worth.
SHAPES = (
    Shape("all-MiniLM-L6-v2", "bert", 6, 384, 12, 1536),
    Shape("BERT large", "bert", 24, 1024, 16, 4096, share=1 / 4),
    Shape("Jina v3 with an adapter", "v3 adapters", 24, 1024, 16, 4096, share=1 / 4),
    Shape("Jina v4, pages", "v4 pages", 36, 2048, 16, 11008, groups=2),
    Shape("Jina v4, one task merged", "v4", 36, 2048, 16, 11008, groups=2, share=1 / 16),
    Shape("Jina v2 base", "v2", 12, 768, 12, 3072, share=1 / 4),
    Shape("BERT base", "bert", 12, 768, 12, 3072, share=1 / 2),
    Shape("Jina v3", "v3", 24, 1024, 16, 4096, share=1 / 4),
    Shape("Jina v4 with an adapter", "v4 adapters", 36, 2048, 16, 11008, groups=2, share=1 / 16),
)
