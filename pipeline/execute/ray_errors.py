"""Translates Ray system errors (disk, memory, lost node) into ClusterError with advice.

Used by `ray_data` for errors that end a run from outside its units. The trade-off: only errors that the user can fix are
translated. Any other error is raised unchanged, because it is a bug in this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ray import exceptions

from actors import errors
from actors.errors import ClusterError, VectideError
from actors.storage.errors import redact

# The last line of a traceback of a VectideError.
_RAISED = re.compile(r"^actors\.errors\.(\w+): (.+)$", re.MULTILINE)
_DISK = (
    "the local disk of a node is full: Ray writes there what does not fit into its object store (/tmp/ray, unless Ray was "
    "started with another --temp-dir). Free some space or lower run.unit_rows"
)
_STORE = "the object store of a node is full. Lower run.unit_rows or start Ray with more --object-store-memory"
_MEMORY = "the memory of a node is full. Lower run.replicas or run.unit_rows, or use larger machines"
_SETUP = "a worker could not be set up. Check the software on its node"
_LOST = "Ray lost data that it cannot recompute. Check the nodes"
# Ordered from most to least specific.
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


def root_error(error: BaseException) -> BaseException:
    """Return the VectideError that Ray wrapped, or a ClusterError for a Ray system error, or the error unchanged."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, VectideError):
            return cause
    for cause in causes:
        # Of an error that a worker raised while it loaded its model, Ray keeps only the traceback as a text.
        if isinstance(cause, exceptions.RayActorError) and (raised := _RAISED.findall(str(cause))):
            name, message = raised[-1]
            translated: VectideError = getattr(errors, name)(message)
            return translated
    for kind, meaning in _MEANINGS:
        for cause in reversed(causes):  # the innermost has the shortest message
            if isinstance(cause, kind):
                return ClusterError(
                    f"{meaning}, then run the same command again: finished work is kept ({redact(cause)})"
                )
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        cause = getattr(current, "cause", None)
        current = cause if isinstance(cause, BaseException) and cause is not current else current.__cause__
