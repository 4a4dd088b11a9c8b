"""A toy modality: a byte string is embedded by the histogram of its first bytes.

It consists of what any modality needs: the line of `MODALITIES`, a preparer with columns of its own, and a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.build import Checkpoint
from actors.encoders.compute.device import Compute
from actors.encoders.layout import Config, FamilyFacts, Tensors
from actors.encoders.spec import ModelSpec
from actors.inputs import Modality, Prepared
from actors.schema import COST
from actors.text.chunk_rules import Chunking
from actors.vectors import Encoded, dense
from tests.checkpoints.files import Random, letters, write_checkpoint

VALUES = 256


def unfit(content: pa.BinaryArray) -> dict[int, tuple[str, str]]:
    """Refuse empty byte strings."""
    empty = pc.indices_nonzero(pc.equal(pc.binary_length(content), 0)).to_pylist()
    return dict.fromkeys(empty, ("empty_text", "there is no byte"))


BYTES = Modality(pa.binary(), b"toy", unfit, "tests.toys.histogram:preparer_of")


@dataclass
class Cut:
    """See `actors.inputs.Preparer`."""

    most: int

    def prepare(self, content: pa.ChunkedArray, tasks: Sequence[str | None] | None = None) -> Prepared:
        """Cut each byte string at the model's limit."""
        lengths = pc.binary_length(content)
        rows = pa.table(
            {"_bytes": pc.binary_slice(content, 0, self.most), COST: pc.min_element_wise(lengths, self.most)}
        )
        return Prepared(rows, pc.sum(pc.greater(lengths, self.most), min_count=0).as_py())


def preparer_of(model: ModelSpec, chunking: Chunking | None) -> Cut:
    """See `Modality.preparer`."""
    return Cut(model.max_tokens)


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """See `actors.encoders.families.detect.FAMILIES`."""
    if config.get("model_type") != "toy_histogram":
        return None
    return FamilyFacts("toy_histogram", hidden=VALUES, max_tokens=32, needed={"order": (VALUES,)}, modality="toy_bytes")


@dataclass
class Histogram:
    """See `actors.encoders.build.RowFamily`."""

    def encode_rows(self, rows: pa.Table, tasks: Sequence[str | None] | None) -> Encoded:
        """Count the values of the bytes of each row."""
        counts = [np.bincount(np.frombuffer(row, np.uint8), minlength=VALUES) for row in rows["_bytes"].to_pylist()]
        vectors = np.array(counts, np.float32).reshape(-1, VALUES)
        return Encoded((dense(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),))


def build(checkpoint: Checkpoint, compute: Compute) -> Histogram:
    """See `actors.encoders.build.Builder`."""
    return Histogram()


def write_histogram(folder: Path) -> Path:
    """Write a checkpoint."""
    tensors = {"order": Random(0).bias(VALUES)}
    return write_checkpoint(folder, config={"model_type": "toy_histogram"}, tensors=tensors, tokenizer=letters())
