"""Clusters similar vectors of pictures, so that fewer are stored: Ward's method, with scipy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.encoders.spec import ModelSpec
from actors.schema import GRID_H, GRID_W, PREFIX
from actors.vectors import Floats, dense

# A sum of vectors that is shorter has no direction.
_SHORTEST = 1e-12


def pooled(many: pa.Array, rows: pa.Table, model: ModelSpec) -> pa.Array:
    """Return lists of vectors, those of each picture clustered; the vectors of its prompt and of texts stay.

    Args:
        many: `list<fixed_size_list<float32>>`, unit vectors.
        rows: Columns that the preparer of pages made: `GRID_H`, `GRID_W` and `PREFIX`.
        model: Made the vectors.
    """
    if model.multi_pool is None or GRID_H not in rows.column_names:
        return many
    counts = pc.list_value_length(many).to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = many.flatten().flatten().to_numpy().reshape(-1, many.type.value_type.list_size)
    tokens = pc.multiply(rows.column(GRID_H), rows.column(GRID_W)).to_pylist()
    starts = rows.column(PREFIX).to_pylist() if model.multi_keep == "all" else [0] * len(rows)
    parts, done = [], 0
    for row, (start, number) in enumerate(zip(starts, tokens, strict=True)):
        if number is None:
            continue
        first = int(offsets[row]) + start
        clusters = cluster(flat[first : first + number], model.multi_pool)
        parts += [flat[done:first], clusters]
        counts[row] -= number - len(clusters)
        done = first + number
    values = np.concatenate([*parts, flat[done:]])
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pa.ListArray.from_arrays(ends, dense(values))


def cluster(vectors: Floats, factor: int) -> Floats:
    """Return the normalised means of Ward's clusters, in the order of their first members.

    The distance is 1 - cosine, as in sentence-transformers, which makes the same clusters.

    Args:
        vectors: float32 [n, dim], of unit length.
        factor: There are `n // factor` clusters, at least one, or fewer if vectors are equal.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # an extra
    from scipy.spatial.distance import squareform

    if len(vectors) <= 1:
        return vectors
    distances = squareform(np.clip(1 - vectors @ vectors.T, 0, 2), checks=False)
    labels = fcluster(linkage(distances, "ward"), max(1, len(vectors) // factor), "maxclust")
    _, firsts, clusters = np.unique(labels, return_index=True, return_inverse=True)
    sums = np.zeros((len(firsts), vectors.shape[1]), np.float32)
    np.add.at(sums, clusters, vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    # The mean of opposite vectors has no direction.
    means = np.where(lengths > _SHORTEST, sums / np.maximum(lengths, _SHORTEST), vectors[firsts])
    ordered: Floats = means[np.argsort(firsts)]
    return ordered
