"""Rooms on this machine's disk: files that are worth nothing once those who use them are gone.

Used by a refresh whose hashes do not fit in memory, and by its readers, who share one copy a machine. A room is a folder
below the folder for temporary files (`TMPDIR`). Who is in it holds a shared lock, which ends with the process however that
ends, so a room without a holder is rubbish: the last one out removes it, or the next one who enters any room does. The
trade-off: a process that is killed leaves its files until then.
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
    """A folder that is empty when the first one enters, and goes when the last one leaves.

    Args:
        name: Those who use one name share one room.

    Attributes:
        path: The folder.
        leave: Give it up; done at the end of the process, or of this object, if not before.
    """

    def __init__(self, name: str) -> None:
        home = _home()
        with shared_temp_dir(home):
            for lock in home.glob("*.lock"):
                _clear(lock)
            lock = home / f"{name}.lock"
            held = _enter(lock)
        self.path = lock.with_suffix("")
        self.leave = weakref.finalize(self, _leave, lock, held)
        with shared_temp_dir(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One at a time of all who are in the room; the others wait."""
        with open(self.path / "alone", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def shared_temp_dir(path: Path) -> Iterator[None]:
    """What the disk refuses, in one sentence.

    Raises:
        StorageError: such as that it is full.
    """
    try:
        yield
    except OSError as error:
        raise errors.to_vectide_error(str(path), "use", error, 1) from None


def _home() -> Path:
    """The folder of all rooms of this user; nobody else can put anything there."""
    with shared_temp_dir(Path("TMPDIR")):
        home = Path(tempfile.gettempdir()) / f"vectide-{os.getuid()}"
    with shared_temp_dir(home):
        home.mkdir(mode=0o700, exist_ok=True)
        found = home.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{str(home)!r} is another user's; set TMPDIR to a folder of this user and run again")
    return home


def _enter(lock: Path) -> int:
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(held, fcntl.LOCK_SH)
        if _is_at(held, lock):
            return held
        os.close(held)  # somebody cleared the room between the two calls


def _leave(lock: Path, held: int) -> None:
    os.close(held)
    with contextlib.suppress(OSError):  # whoever enters next tries again
        _clear(lock)


def _clear(lock: Path) -> None:
    """Remove a room if nobody is in it: the lock last, so that no folder is left without one."""
    try:
        held = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(held, lock):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    except BlockingIOError:
        return
    finally:
        os.close(held)


def _is_at(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False
