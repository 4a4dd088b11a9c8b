"""The twin of an encoder as a module of sentence-transformers, whose trainer and losses then train it.

Imported in workers only: it needs torch and sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule
from torch.nn import functional

from actors.encoders.spec import ModelSpec, check_task
from actors.encoders.twins import load_twin
from actors.encoders.twins.base import Twin, pack_padded, pool
from actors.encoders.twins.lora import add_lora, start_factors, use_lora
from actors.text.tokenizer import Tokenizer
from pipeline.job.training import Train

# Value of the feature `task` for the base without an adapter.
BASE = -1


class EmbeddingModule(InputModule):
    """A twin for sentence-transformers. It computes no padding, whatever the order and the lengths of the rows.

    Args:
        twin: The model.
        tasks: Names of its adapters. The feature `task` has their places; without it, the first is used.
    """

    def __init__(self, twin: Twin, tasks: Sequence[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.twin = twin
        self.tasks = tuple(tasks)
        self.max_seq_length = twin.spec.max_tokens
        self._tokenizer = Tokenizer(replace(twin.spec, task=None, prompt=""))

    def preprocess(  # type: ignore[override]
        self, inputs: Sequence[str], prompt: str | None = None, task: str | None = None, **_: object
    ) -> dict[str, torch.Tensor]:
        """Tokenizes texts as the encoder does.

        Args:
            inputs: Texts, cut at the model's `max_tokens`.
            prompt: Put before each text.
            task: One of `tasks`; None is the first.

        Returns:
            `input_ids` and `attention_mask`, int64 [rows, longest]; `task`, int64 [rows].

        Raises:
            ConfigError: There is no such task.
        """
        ids = self._tokenizer.tokenize([f"{prompt or ''}{text}" for text in inputs]).ids
        lengths = np.diff(ids.offsets.to_numpy())
        mask = np.arange(max(lengths, default=0)) < lengths[:, None]
        padded = np.zeros(mask.shape, np.int64)
        padded[mask] = ids.flatten().to_numpy()
        if task is not None:
            check_task(task, self.tasks, where=self.twin.spec.model)
        number = 0 if task is None else self.tasks.index(task)
        return {
            "input_ids": torch.from_numpy(padded),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "task": torch.full((len(inputs),), number),
        }

    def forward(self, features: dict[str, Any], **_: object) -> dict[str, Any]:
        """Adds the vectors of the rows to their features.

        Args:
            features: As `preprocess` returns them. All rows have the same task.

        Returns:
            The features and `sentence_embedding`, [rows, hidden] of unit length, float32 (float64 of a float64 twin). If the
            twin makes many vectors a row, also `token_embeddings`, [rows, longest, width], each of unit length, zeros
            where the mask is 0.
        """
        ids, mask = features["input_ids"], features["attention_mask"]
        if self.tasks:
            number = int(features["task"][0]) if "task" in features else 0
            use_lora(self.twin, None if number == BASE else self.tasks[number])
        # Rows of similar length share a call of attention.
        order = mask.sum(1).argsort(descending=True, stable=True)
        places = order.argsort()
        batch = pack_padded(ids[order], mask[order])
        states = self.twin(batch)
        vectors = functional.normalize(pool(self.twin, states, batch), dim=1)
        features["sentence_embedding"] = vectors[places]
        if self.twin.spec.makes("multi"):
            many = functional.normalize(_exact(self.twin.multi(states)), dim=1)
            padded = many.new_zeros(*mask.shape, many.shape[1])
            padded[mask[order].bool()] = many
            features["token_embeddings"] = padded[places]
        return features

    def get_embedding_dimension(self) -> int:
        """Returns the width of the vectors."""
        return self.twin.spec.hidden

    def save(self, output_path: str, *args: object, safe_serialization: bool = True, **kwargs: object) -> None:
        """Raises, because sentence-transformers cannot load a twin again.

        Raises:
            NotImplementedError: Names what saves it.
        """
        raise NotImplementedError("a twin is saved by actors.encoders.twins, in the layout of its checkpoint")


def embedding_model(
    spec: ModelSpec,
    *,
    tasks: Sequence[str] = (),
    rank: int = 0,
    alpha: float = 0.0,
    seed: int = 0,
    start_from: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> SentenceTransformer:
    """Loads a model for training.

    Args:
        spec: The model.
        tasks: Names of the LoRA adapters to train; empty: all parameters are trained.
        rank: Of the adapters' factors.
        alpha: Numerator of the factors' scale.
        seed: Of the adapters' first values.
        start_from: The adapters with which they begin, one each, see `start_factors`; None: adapters that change nothing.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Raises:
        ConfigError: The family cannot be trained, or the adapter to start from has another rank or alpha.
        ModelError: The checkpoint or the adapter to start from is incomplete, or does not fit.
    """
    twin = load_twin(spec, dtype=dtype, device=device)
    if tasks:
        starts = [start_factors(twin, each) for each in start_from or ()]
        add_lora(twin, tasks, rank=rank, alpha=alpha, seed=seed, starts=starts)
    return SentenceTransformer(modules=[EmbeddingModule(twin, tasks)], device=str(device))


def model_of(train: Train, spec: ModelSpec, *, device: str = "cpu") -> SentenceTransformer:
    """Loads the model of a resolved job, as it is before the first step; see `embedding_model`."""
    return embedding_model(
        spec,
        tasks=train.tasks,
        rank=train.rank or 0,
        alpha=train.alpha or 0.0,
        seed=train.seed,
        start_from=train.start_from,
        device=device,
    )


def _exact(x: torch.Tensor) -> torch.Tensor:
    """Returns float64 as it is, and every other type as float32."""
    return x if x.dtype == torch.float64 else x.float()
