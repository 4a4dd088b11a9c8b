"""Preparers of texts: whole, truncated at the model's limit, or cut into chunks. See `actors.inputs`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.inputs import Prepared
from actors.schema import COST, INPUT_IDS, PREFIX
from actors.text.chunk_rules import Chunking
from actors.text.chunks import Chunker
from actors.text.tokenizer import Tokenizer


class TextPreparer:
    """Turns each text into token ids."""

    def __init__(self, model: ModelSpec) -> None:
        self._tokenizer = Tokenizer(model)
        self._drops_prompts = model.multi_keep == "content"

    def prepare(self, content: pa.ChunkedArray, tasks: Sequence[str | None] | None = None) -> Prepared:
        """See `Preparer`."""
        tokens = self._tokenizer.tokenize(content.to_pylist(), tasks)
        rows = pa.table({INPUT_IDS: tokens.ids, COST: pc.list_value_length(tokens.ids)})
        if self._drops_prompts:
            rows = rows.append_column(PREFIX, pa.array(self._tokenizer.prompt_lengths(tokens.ids, tasks)))
        return Prepared(rows, int(np.count_nonzero(tokens.truncated)))


class ChunkPreparer:
    """Turns each text into token ids and chunks."""

    def __init__(self, model: ModelSpec, chunking: Chunking) -> None:
        self._chunker = Chunker(model, chunking)

    def prepare(self, content: pa.ChunkedArray, tasks: Sequence[str | None] | None = None) -> Prepared:
        """See `Preparer`."""
        documents = self._chunker.chunk(content.to_pylist(), tasks)
        return Prepared(documents.append_column(COST, pc.list_value_length(documents[INPUT_IDS])))


def preparer_of(model: ModelSpec, chunking: Chunking | None) -> TextPreparer | ChunkPreparer:
    """Return the preparer of texts for a model."""
    return TextPreparer(model) if chunking is None else ChunkPreparer(model, chunking)
