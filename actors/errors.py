"""Tree of all errors that this package raises on purpose.

    VectideError                      base of all; `exit_code` is the exit code of the command line
    ├── ConfigError                   a job file, an argument or a setting is wrong            (exit 2)
    │   ├── ModelError                a checkpoint is missing, incomplete or not supported     (exit 2)
    │   └── TaskMissing               a model needs a task, and none is set                    (exit 2)
    ├── DataError                     a source object cannot be read in its declared format
    │   ├── SourceChanged             a source object has changed since the plan
    │   └── UnfitVectors              rows have invalid vectors: not finite, or all zeros (in encoders/finite.py)
    ├── StorageError                  a store refused or failed, after retries
    │   ├── AccessDenied              a store refuses access to an object, or has no credentials for it
    │   ├── TransientError            may succeed on a retry (used inside the retry loop)
    │   └── UnsafeStore               a store has no atomic create-if-absent
    ├── TooManyQuarantined            more rows were quarantined than `run.max_quarantined` allows
    ├── GateClosed                    a re-embedding does not meet the quality that the job requires
    ├── PoisonUnit                    a unit keeps killing its process
    ├── Diverged                      a loss, gradient or weight of a training is not finite
    ├── DeviceLost                    a GPU failed, and no later call on it succeeds in this process
    ├── ClusterError                  Ray or a node failed: disk, memory, lost nodes
    │   ├── OutOfMemory               a mini-batch does not fit into the memory of a rank (in train/trainer.py)
    │   └── ClusterStalled            no progress on the cluster for too long, such as no machine for the encoders
    ├── TableConflict                 the table has content that this job must not change
    │   ├── NoSuchVersion             the table does not have the requested version            (exit 2)
    │   ├── CommitConflict            another writer committed first; run again
    │   ├── ForeignCommits            another tool changed the table, and the job has no policy for it
    │   └── CommitUnknown             the store did not report whether a commit succeeded
    └── InvariantBroken               an invariant of this package is violated: a bug in it

A message has the value, the rule and the fix. All errors can be pickled, because workers send them to the driver.
"""

from __future__ import annotations


class VectideError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: The value, the rule and the fix, in one or two sentences.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(VectideError):
    """A job file, an argument or a setting is wrong."""

    exit_code = 2


class ModelError(ConfigError):
    """A checkpoint is missing, incomplete, or of a family that is not supported."""


class TaskMissing(ConfigError):
    """A model needs a task, and none is set."""


class DataError(VectideError):
    """A source object cannot be read in its declared format."""


class SourceChanged(DataError):
    """A source object has changed since the plan (another size or etag)."""


class StorageError(VectideError):
    """A store refused or failed, after retries."""


class AccessDenied(StorageError):
    """A store refuses access to an object, or has no credentials for it."""


class TransientError(StorageError):
    """A store failed in a way that may succeed on a retry."""


class UnsafeStore(StorageError):
    """A store has no atomic create-if-absent, so two drivers could both create the same object."""


class TooManyQuarantined(VectideError):
    """More rows were quarantined than `run.max_quarantined` allows; nothing was published."""


class GateClosed(VectideError):
    """A re-embedding does not meet the quality that the job requires; its files are kept, and nothing was published.

    Args:
        message: The sentence.
        figures: What was measured, for the report of the run.
    """

    def __init__(self, message: str, figures: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.figures = figures or {}


class PoisonUnit(VectideError):
    """A unit keeps killing its process and cannot be narrowed further."""


class Diverged(VectideError):
    """A loss, gradient or weight of a training is not finite; the last checkpoint is kept."""


class DeviceLost(VectideError):
    """A GPU failed, and no later call on it succeeds in this process; finished units are kept."""


class ClusterError(VectideError):
    """Ray or a node failed; finished units are kept."""


class ClusterStalled(ClusterError):
    """The cluster made no progress for too long; finished units are kept."""


class TableConflict(VectideError):
    """The table has content that this job must not change."""


class NoSuchVersion(TableConflict):
    """The table does not have the requested version, or no longer has it."""

    exit_code = 2


class CommitConflict(TableConflict):
    """Another writer committed first; running the same command again is safe."""


class ForeignCommits(TableConflict):
    """Another tool changed rows or columns of the table, and the job has no policy for such changes."""


class CommitUnknown(TableConflict):
    """The store did not report whether a commit succeeded; running the same command again checks it."""


class InvariantBroken(VectideError):
    """An invariant of this package is violated. This is a bug in vectide."""

    def __init__(self, message: str) -> None:
        suffix = " This is a bug in vectide: please report it."
        super().__init__(message if message.endswith(suffix) else message + suffix)
