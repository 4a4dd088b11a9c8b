"""Ray system errors become ClusterError, wrapped errors of this package come through, and others stay unchanged."""

from __future__ import annotations

import pytest
from ray import exceptions

from actors.errors import ClusterError, ModelError
from pipeline.execute.ray_errors import root_error


def in_a_task(cause: Exception) -> exceptions.RayTaskError:
    """Wrap an error of a worker as Ray does."""
    wrapped: exceptions.RayTaskError = exceptions.RayTaskError("write", "a traceback of many lines", cause)
    return wrapped


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (exceptions.OutOfDiskError("no space"), "the local disk of a node is full.*lower run.unit_rows"),
        (exceptions.ObjectStoreFullError("no room"), "object store of a node is full.*--object-store-memory"),
        (in_a_task(exceptions.OutOfMemoryError("killed")), "the memory of a node is full. Lower run.replicas"),
        (exceptions.NodeDiedError("gone"), "Ray lost data that it cannot recompute"),
        (exceptions.WorkerCrashedError(), "Ray lost data that it cannot recompute"),
    ],
)
def test_a_ray_system_error_becomes_a_cluster_error_with_advice(error, sentence):
    translated = root_error(error)
    assert isinstance(translated, ClusterError)
    with pytest.raises(ClusterError, match=f"{sentence}.*, then run the same command again: finished work is kept"):
        raise translated


def test_a_wrapped_vectide_error_is_unwrapped():
    error = ModelError("no such model")
    assert root_error(in_a_task(error)) is error


def test_an_error_of_an_actor_that_did_not_start_is_read_from_its_traceback():
    lines = [
        "ray::MapWorker.__init__() (pid=1)",
        "actors.errors.ModelError: /tmp/x is not an adapter",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "actors.errors.ModelError: adapter 'legal': s3://lake/legal is not an adapter",
    ]
    in_init = exceptions.RayTaskError("__init__", "\n".join(lines), ModelError("lost in a pickle"))
    translated = root_error(exceptions.ActorDiedError(in_init))
    assert type(translated) is ModelError
    assert str(translated) == "adapter 'legal': s3://lake/legal is not an adapter"


def test_any_other_error_is_returned_unchanged():
    error = in_a_task(TypeError("a bug"))
    assert root_error(error) is error
