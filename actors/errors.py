"""Every error that this tool raises on purpose, in one tree.

    VectideError                      anything below; `exit_code` is what the command line ends with
    ├── ConfigError                   a job file, an argument or a setting is wrong            (exit 2)
    │   └── ModelError                a checkpoint is missing, incomplete or not understood    (exit 2)
    ├── DataError                     a source object cannot be read as what it claims to be
    │   ├── SourceChanged             a source object is not the one that was planned
    │   └── UnfitVectors              rows have no vector: not finite, or all zeros (in encoders/finite.py)
    ├── StorageError                  a store refused or failed, after retries
    │   ├── TransientError            worth another try (used inside the retry loop)
    │   └── UnsafeStore               a store without an atomic create-if-absent
    ├── TooManyQuarantined            more rows were set aside than `run.max_quarantined` allows
    ├── GateClosed                    a second generation is not as good as the job asks of it
    ├── PoisonUnit                    a unit keeps killing its process
    ├── ClusterError                  Ray, or a machine of it, could not go on: disk, memory, nodes
    │   └── ClusterStalled            nothing moved on the cluster for too long: no machine came
    ├── TableConflict                 the table holds something that this job must not touch
    │   ├── NoSuchVersion             a version that the table does not have                   (exit 2)
    │   ├── CommitConflict            another writer committed first; run again
    │   ├── ForeignCommits            another tool changed the table, and the job does not say what becomes of that
    │   └── CommitUnknown             the store did not say whether a commit landed
    └── InvariantBroken               a promise of this tool does not hold: a bug of ours

A message has the value, the rule and the way out. All of them survive `pickle`, because they cross from
workers to the driver.
"""

from __future__ import annotations


class VectideError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: The value, the rule and the way out, in one or two sentences.
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
    """A checkpoint is missing, incomplete, or not of a family that is understood."""


class DataError(VectideError):
    """A source object cannot be read as what it claims to be."""


class SourceChanged(DataError):
    """A source object is not the one that was planned (another size or etag)."""


class StorageError(VectideError):
    """A store refused or failed, after retries."""


class TransientError(StorageError):
    """A store failed in a way that is worth another try."""


class UnsafeStore(StorageError):
    """A store does not honour an atomic create-if-absent, so two drivers could both win."""


class TooManyQuarantined(VectideError):
    """More rows were set aside than `run.max_quarantined` allows; nothing was published."""


class GateClosed(VectideError):
    """A second generation is not as good as the job asks of it; it was built and is kept, and nothing was published."""


class PoisonUnit(VectideError):
    """A unit keeps killing its process and cannot be narrowed further."""


class ClusterError(VectideError):
    """Ray, or a machine of it, could not go on; finished units are kept."""


class ClusterStalled(ClusterError):
    """Nothing moved on the cluster for too long; what was done is kept."""


class TableConflict(VectideError):
    """The table holds something that this job must not touch."""


class NoSuchVersion(TableConflict):
    """A version is asked for that the table does not have, or no longer has."""

    exit_code = 2


class CommitConflict(TableConflict):
    """Another writer committed first; running the same command again is safe."""


class ForeignCommits(TableConflict):
    """Another tool changed rows or columns of the table, and the job does not say what is to become of that."""


class CommitUnknown(TableConflict):
    """The store did not say whether a commit landed; running the same command again finds out."""


class InvariantBroken(VectideError):
    """A promise of this tool does not hold. This is a bug of ours: please report it."""

    def __init__(self, message: str) -> None:
        suffix = " This is a bug in vectide: please report it."
        super().__init__(message if message.endswith(suffix) else message + suffix)
