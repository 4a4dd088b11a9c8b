"""What Ray runs out of is said in one sentence; what is ours comes through; what is neither stays as it is."""

from __future__ import annotations

import pytest
from ray import exceptions

from actors.errors import ClusterError, ModelError
from pipeline.execute.ray_errors import root


def in_a_task(cause: Exception) -> exceptions.RayTaskError:
    """As Ray wraps what a worker raised."""
    wrapped: exceptions.RayTaskError = exceptions.RayTaskError("write", "a traceback of many lines", cause)
    return wrapped


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (exceptions.OutOfDiskError("no space"), "the local disk of a node is full.*lower run.unit_rows"),
        (exceptions.ObjectStoreFullError("no room"), "object store of a node is full.*--object-store-memory"),
        (in_a_task(exceptions.OutOfMemoryError("killed")), "the memory of a node is full. Lower run.replicas"),
        (exceptions.NodeDiedError("gone"), "Ray lost more than it can make again"),
        (exceptions.WorkerCrashedError(), "Ray lost more than it can make again"),
    ],
)
def test_what_a_machine_lacks_is_said_with_the_way_out(error, sentence):
    found = root(error)
    assert isinstance(found, ClusterError)
    with pytest.raises(ClusterError, match=f"{sentence}.*, then run the same command again: finished work is kept"):
        raise found


def test_our_own_error_comes_out_of_its_wrapping():
    ours = ModelError("no such model")
    assert root(in_a_task(ours)) is ours


def test_a_mistake_in_our_code_is_not_taken_for_a_full_disk():
    error = in_a_task(TypeError("a bug"))
    assert root(error) is error
