"""Preparer of pictures and texts together, for a model that sees. See `actors.inputs`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.images.pixels import HEADER_BYTES, grid_of
from actors.inputs import Prepared
from actors.schema import COST, GRID_H, GRID_W, INPUT_IDS, PICTURE, PREFIX
from actors.text.chunk_rules import Chunking
from actors.text.tokenizer import Tokenizer

# The publisher's prompt of a picture, the same for every task, in three parts. The second is repeated for each token of the
# picture.
_PROMPT = ("<|im_start|>user\n<|vision_start|>", "<|image_pad|>", "<|vision_end|>Describe the image.<|im_end|>\n")


class PagePreparer:
    """Turns each text, and the prompt of each picture, into token ids. A picture is never truncated."""

    def __init__(self, model: ModelSpec) -> None:
        self._tokenizer = Tokenizer(model)
        self._drops_prompts = model.multi_keep == "content"
        parts = self._tokenizer.tokenize_whole(_PROMPT, [None] * len(_PROMPT))
        self._before, self._place, self._after = (part.ids for part in parts)

    def prepare(self, content: pa.ChunkedArray, tasks: Sequence[str | None] | None = None) -> Prepared:
        """See `Preparer`."""
        texts, pictures = (pc.struct_field(content, name) for name in ("text", "picture"))
        is_picture = pictures.is_valid().to_numpy()
        rows = np.flatnonzero(~is_picture)
        own_tasks = None if tasks is None else [tasks[int(row)] for row in rows]
        tokens = self._tokenizer.tokenize(texts.filter(pictures.is_null()).to_pylist(), own_tasks)
        headers = pc.binary_slice(pictures, 0, HEADER_BYTES).drop_null().to_pylist()
        grids = [grid_of(header) for header in headers]
        prompts = pa.array([self._prompt(*grid) for grid in grids], tokens.ids.type)
        # Texts first, then pictures; then in the order of the content.
        order = np.argsort(np.concatenate([rows, np.flatnonzero(is_picture)]))
        ids = pa.concat_arrays([tokens.ids, prompts]).take(pa.array(order))
        starts = np.where(is_picture, len(self._before), 0).astype(np.int32)
        if self._drops_prompts:
            starts[rows] = self._tokenizer.prompt_lengths(tokens.ids, own_tasks)
        columns = {INPUT_IDS: ids, COST: pc.list_value_length(ids), PREFIX: starts, PICTURE: pictures}
        for number, name in enumerate((GRID_H, GRID_W)):
            sides = np.zeros(len(ids), np.int32)
            sides[is_picture] = [grid[number] for grid in grids]
            columns[name] = pa.array(sides, mask=~is_picture)
        return Prepared(pa.table(columns), int(np.count_nonzero(tokens.truncated)))

    def _prompt(self, rows: int, columns: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.concatenate([self._before, np.tile(self._place, rows * columns), self._after])


def preparer_of(model: ModelSpec, chunking: Chunking | None) -> PagePreparer:  # noqa: ARG001
    """Returns the preparer of a model that sees; `chunking` is None, because such a model refuses other settings."""
    return PagePreparer(model)
