"""What Ray says when a machine runs out of something or is gone for good, in one sentence with the way out.

Used by `dataflow` for everything that ends a run from outside of its units. The trade-off: only what a person can do
something about is put into words; anything else stays as Ray raised it, for it is a mistake of ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray import exceptions

from actors.errors import ClusterError, VectideError
from actors.storage.errors import redact

_DISK = (
    "the local disk of a node is full: what does not fit Ray's object store goes there (/tmp/ray, unless Ray was started "
    "with another --temp-dir). Free some space or lower run.unit_rows"
)
_STORE = "the object store of a node is full. Lower run.unit_rows or start Ray with more --object-store-memory"
_MEMORY = "the memory of a node is full. Lower run.replicas or run.unit_rows, or take larger machines"
_SETUP = "a worker could not be set up. Look at what its node has"
_LOST = "Ray lost more than it can make again. Look at its nodes"
# The first kind that is met says most.
_MEANINGS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.OutOfDiskError, _DISK),
    (exceptions.ObjectStoreFullError, _STORE),
    (exceptions.OutOfMemoryError, _MEMORY),
    (exceptions.RuntimeEnvSetupError, _SETUP),
    (exceptions.ObjectLostError, _LOST),
    (exceptions.RayActorError, _LOST),
    (exceptions.NodeDiedError, _LOST),
    (exceptions.WorkerCrashedError, _LOST),
    (exceptions.LocalRayletDiedError, _LOST),
    (exceptions.RaySystemError, _LOST),
)


def root(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrapping; one of ours for what a machine lacks; or the error as it is."""
    chain = list(_chain(error))
    for seen in chain:
        if isinstance(seen, VectideError):
            return seen
    for kind, meaning in _MEANINGS:
        for seen in reversed(chain):  # the innermost has the least of Ray's own wrapping around it
            if isinstance(seen, kind):
                return ClusterError(
                    f"{meaning}, then run the same command again: finished work is kept ({redact(seen)})"
                )
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) and cause is not seen else seen.__cause__
