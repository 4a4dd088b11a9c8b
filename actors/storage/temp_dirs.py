"""Shared temporary directories, removed when the last process that uses them exits.

Used by a refresh whose hashes do not fit in memory, and by its readers, which share one copy per machine. The directories
are below the folder for temporary files (`TMPDIR`). Each user has a shared file lock, which the system releases when its
process ends in any way. A directory without a lock owner is removed by its last user, or else by the next process that
opens any shared directory. The trade-off: a killed process leaves its files until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from actors.errors import StorageError
from actors.storage import errors


class SharedTempDir:
    """Temporary directory that is created empty for its first user and removed by its last.

    Args:
        name: Users of one name share one directory.

    Attributes:
        path: The directory.
        leave: Releases it; called at the end of the process or of this object, if not before.
    """

    def __init__(self, name: str) -> None:
        home = _home()
        with disk_errors(home):
            for lock in home.glob("*.lock"):
                _clear(lock)
            lock = home / f"{name}.lock"
            lock_fd = _acquire(lock)
        self.path = lock.with_suffix("")
        self.leave = weakref.finalize(self, _leave, lock, lock_fd)
        with disk_errors(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Give one user of the directory at a time exclusive access; the others wait."""
        with open(self.path / "alone", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert errors of the disk to StorageError.

    Raises:
        StorageError: The disk failed, for example because it is full.
    """
    try:
        yield
    except OSError as error:
        raise errors.to_vectide_error(str(path), "use", error, 1) from None


def _home() -> Path:
    """Return the folder of all shared directories of this user, in which no other user can write."""
    with disk_errors(Path("TMPDIR")):
        home = Path(tempfile.gettempdir()) / f"vectide-{os.getuid()}"
    with disk_errors(home):
        home.mkdir(mode=0o700, exist_ok=True)
        status = home.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{str(home)!r} is another user's; set TMPDIR to a folder of this user and run again")
    return home


def _acquire(lock: Path) -> int:
    while True:
        lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_SH)
        if _is_at(lock_fd, lock):
            return lock_fd
        os.close(lock_fd)  # another process removed the directory between the two calls


def _leave(lock: Path, lock_fd: int) -> None:
    os.close(lock_fd)
    with contextlib.suppress(OSError):  # the next process that opens a directory tries again
        _clear(lock)


def _clear(lock: Path) -> None:
    """Remove a directory without users: its lock file last, so that no directory is left without one."""
    try:
        lock_fd = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock_fd, lock):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    except BlockingIOError:
        return
    finally:
        os.close(lock_fd)


def _is_at(lock_fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock_fd), path.stat())
    except FileNotFoundError:
        return False
