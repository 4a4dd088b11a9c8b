"""Inputs of models: what content a model takes (its modality), and how rows are prepared for it.

A preparer turns the content of rows into the columns that a model's family reads, such as token ids. Nothing else reads
them: the pipeline knows only the cost of each row and the parts that it is cut into. To add a modality, write a preparer,
add a line to `MODALITIES`, and name it in the layout of a family (`FamilyFacts.modality`) whose model is a `RowFamily`. A model
that takes pages takes texts too, and `ModelSpec.seeing` chooses pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast

import pyarrow as pa

from actors.encoders.spec import ModelSpec
from actors.source.blank import blank_pages, blank_texts
from actors.text.chunk_rules import Chunking


@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs of a model, made from the content of some rows.

    Attributes:
        rows: Columns for the model's family, one row per content, and `COST`, int32: its tokens or patches. If a content is
            cut into parts that become rows of the table, `PARTS` lists, as structs, the columns that each of them has in the table.
            Of pictures, `GRID_H` and `GRID_W` are columns of a table of many vectors too.
        truncated: Number of contents that were cut at the model's limit.
    """

    rows: pa.Table
    truncated: int = 0


class Preparer(Protocol):
    """Prepares content for one model; loaded once a process. Does not import torch."""

    def prepare(self, content: pa.ChunkedArray, tasks: Sequence[str | None] | None = None) -> Prepared:
        """Return the inputs of some rows, in their order.

        Args:
            content: Values of `Modality.type` without nulls.
            tasks: One per row, where None means no task; `tasks=None`: all rows have the model's own task.
        """
        ...


@dataclass(frozen=True, slots=True)
class Modality:
    """A kind of content.

    Attributes:
        type: Type of the content: string, binary, or `PAGE_CONTENT`.
        salt: Hashed with each content, so that equal bytes of two modalities have two hashes; at most 16 bytes.
        unfit: Returns the rows to quarantine: index to reason and error.
        preparer: "module:function"; the function returns the preparer of a model and a chunking.
    """

    type: pa.DataType
    salt: bytes
    unfit: Callable[[pa.Array], dict[int, tuple[str, str]]]
    preparer: str


# A picture (`actors.images.pixels`) if there is one, else a text. The text beside a picture is kept and not embedded.
PAGE_CONTENT = pa.struct([("text", pa.string()), ("picture", pa.binary())])
# Texts have no salt, because they had none when they were the only modality.
MODALITIES = {
    "text": Modality(pa.string(), b"", blank_texts, "actors.text.preparers:preparer_of"),
    "page": Modality(PAGE_CONTENT, b"picture", blank_pages, "actors.images.preparers:preparer_of"),
}


@lru_cache(maxsize=4)
def load_preparer(model: ModelSpec, chunking: Chunking | None = None) -> Preparer:
    """Return the preparer of a model, which is loaded once a process."""
    module, function = MODALITIES[model.modality].preparer.split(":")
    return cast("Preparer", getattr(import_module(module), function)(model, chunking))


def prepare_texts(model: ModelSpec, texts: Sequence[str], tasks: Sequence[str | None] | None = None) -> pa.Table:
    """Return the inputs of texts, such as questions, which every modality has; `tasks` as for `Preparer.prepare`."""
    kind = MODALITIES[model.modality].type
    content = pa.array([{"text": text} for text in texts], kind) if kind == PAGE_CONTENT else pa.array(texts, kind)
    return load_preparer(model).prepare(pa.chunked_array([content]), tasks).rows
