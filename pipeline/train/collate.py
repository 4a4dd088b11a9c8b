"""Batches of token ids from rows of a source, for the trainer of sentence-transformers.

Runs in the workers. The texts are tokenized by the encoder's own tokenizer, so a text has the ids that it has in production.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from actors.encoders.spec import ModelSpec
from actors.text.tokenizer import Tokenizer
from pipeline.train.data import HASH, LABEL, QUERY, TEACHER, Source
from pipeline.train.prompts import prompts_of

Batch = dict[str, Any]  # tensors, and the name of the source


class Rows(Dataset[Batch]):
    """The rows of all sources, by numbers that count through them; see `SourceBatchSampler`. A batch is of one source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._starts = [0, *accumulate(source.rows for source in sources)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Source, pa.Table]:
        """Return the rows of a batch and their source."""
        place = bisect_right(self._starts, numbers[0]) - 1
        return self._sources[place], self._sources[place].take(np.asarray(numbers) - self._starts[place])


class Collator:
    """Makes a batch of rows of one source.

    Args:
        spec: The model that is trained.
        tasks: The trained adapters: none, one for both sides, or that of queries and that of passages.

    Attributes:
        prompts: Texts put before each query and each passage.
    """

    def __init__(self, spec: ModelSpec, tasks: Sequence[str]) -> None:
        self.prompts = prompts_of(spec, tasks)
        self._tasks = (0, len(tasks) - 1) if tasks else (-1, -1)
        of_queries = Tokenizer(replace(spec.query_side(), prompt=self.prompts[0]))
        self._tokenizers = (of_queries, Tokenizer(replace(spec, prompt=self.prompts[1])))

    def __call__(self, batch: tuple[Source, pa.Table]) -> Batch:
        """Return the batch.

        For each column of texts, such as `query`: `query_input_ids` and `query_attention_mask`, int64 [rows, longest];
        `query_task`, int64 [rows], the number of the adapter or -1; `query_text_hash`, int64 [rows]; and if there is a teacher,
        `query_teacher`, float32 [rows, width]. Then `label`, float32 [rows] or int64 [rows], and `dataset_name`.
        """
        source, rows = batch
        found: Batch = {}
        for column in source.columns:
            side = int(column != QUERY)
            ids = self._tokenizers[side].tokenize(rows[column].to_pylist()).ids
            found[f"{column}_input_ids"], found[f"{column}_attention_mask"] = padded(ids)
            found[f"{column}_task"] = torch.full((len(ids),), self._tasks[side])
            found[column + HASH] = torch.tensor(rows[column + HASH].to_numpy())
            if (name := column + TEACHER) in rows.column_names:
                vectors = rows[name].combine_chunks().flatten().to_numpy()
                found[name] = torch.tensor(vectors).view(len(ids), source.teacher)
        if source.label is not None:
            found[LABEL] = torch.tensor(rows[LABEL].to_numpy())
        found["dataset_name"] = source.name
        return found


def padded(ids: pa.ListArray) -> tuple[Tensor, Tensor]:
    """Return lists of token ids and their mask, int64 [rows, longest]; ids that the mask leaves out are 0."""
    lengths = np.diff(ids.offsets.to_numpy())
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    filled = np.zeros(mask.shape, np.int64)
    filled[mask] = ids.flatten().to_numpy()
    return torch.from_numpy(filled), torch.from_numpy(mask.astype(np.int64))
