"""Vectors between a model and the table: the columns, the quantiser, and blobs of many vectors."""

from actors.vectors.blobs import Floats, Ints, vectors_of
from actors.vectors.columns import (
    MULTI_STORED,
    Bools,
    Encoded,
    Kind,
    VectorColumn,
    dense,
    has_many,
    lineage_of,
    outputs_of,
    reusable,
)
from actors.vectors.quantiser import Layout, MultiPrecision, Precision

__all__ = [
    "MULTI_STORED",
    "Bools",
    "Encoded",
    "Floats",
    "Ints",
    "Kind",
    "Layout",
    "MultiPrecision",
    "Precision",
    "VectorColumn",
    "dense",
    "has_many",
    "lineage_of",
    "outputs_of",
    "reusable",
    "vectors_of",
]
