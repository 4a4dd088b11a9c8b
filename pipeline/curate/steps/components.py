"""Connected components of a graph whose edges come in parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_EDGES = 1 << 20  # that are kept before they are merged

Ints = np.ndarray[Any, np.dtype[np.int64]]


def smallest_of_components(edges: Iterable[Ints]) -> Ints:
    """Return each node that is not the smallest of its component, with the smallest, [2, nodes], in order of nodes.

    The memory is that of the nodes, not of all edges.

    Args:
        edges: Parts [2, edges] of a graph.
    """
    stars, new = np.empty((2, 0), np.int64), list[Ints]()
    for part in edges:
        new.append(part)
        if sum(each.shape[1] for each in new) > max(_EDGES, stars.shape[1]):
            stars, new = _stars(np.concatenate([stars, *new], axis=1)), []
    return _stars(np.concatenate([stars, *new], axis=1))


def _stars(edges: Ints) -> Ints:
    from scipy.sparse import coo_array  # an extra
    from scipy.sparse.csgraph import connected_components

    nodes, places = np.unique(edges, return_inverse=True)
    start, end = places.reshape(edges.shape)
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), (len(nodes), len(nodes)))
    labels = connected_components(graph, directed=False)[1]
    smallest = nodes[np.unique(labels, return_index=True)[1]][labels]  # nodes ascend, so the first is the smallest
    return np.stack([nodes, smallest])[:, nodes != smallest]
