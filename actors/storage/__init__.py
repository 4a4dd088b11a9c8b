"""Access to stores: any fsspec URL, or a path of a local disk.

Called by the readers, the writer, the ledger and the table; no other module opens a file of a corpus or a table. Every
function takes a full URL, so no object with credentials is ever pickled: workers find their own credentials in the
environment or the default chain. Writes are whole objects: one atomic PUT on an object store; a temporary name, fsync
and rename (or link, for a create) on a local disk. The trade-off: an object is built in memory first, so the writer
limits its files to a few hundred MB.

The ledger depends on the exclusive create. Its implementation by store:
    local disk   link(2) of a finished temporary file: atomic, and never a partial file
    S3           PutObject with `If-None-Match: *`
    GCS          `ifGenerationMatch=0`        Azure   `If-None-Match: *`
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import pyarrow as pa

from actors.errors import ConfigError, StorageError, TransientError
from actors.progress_counter import count_progress
from actors.schema import Shard
from actors.storage import errors, identity, providers, s3
from actors.storage.listed import Listing
from actors.storage.listing import below, search
from actors.storage.ranged_file import RangedFile

T = TypeVar("T")

ATTEMPTS = 8
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
READ_BYTES = 1 << 20  # the smallest request of a buffered reader


def is_local(url: str) -> bool:
    """Return whether `url` is a path of this machine's disk."""
    return "://" not in url or url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """Return the path of a local URL.

    Raises:
        ConfigError: `url` is not on a local disk.
    """
    if not is_local(url):
        raise ConfigError(f"{url!r} is not a path of this machine's disk")
    return Path(url.split("://", 1)[1] if "://" in url else url)


def absolute(url: str) -> str:
    """Return `url` as an absolute path or URL without a trailing slash, so that it means the same everywhere.

    Raises:
        ConfigError: It has credentials in it.
    """
    errors.check_url(url)
    if is_local(url):
        return str(local_path(os.path.expanduser(url)).absolute())
    return providers.spelled(url.rstrip("/"))


def join(url: str, *parts: str) -> str:
    """Return `url` with `parts` appended."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of `url` and the path in it.

    Raises:
        ConfigError: the URL's protocol is unknown, its driver package is not installed, or it has credentials in it.
    """
    errors.check_url(url)
    errors.check_account(url)
    store = providers.of(url)
    # Listings are never cached: another process writes too.
    options = {} if is_local(url) else {"use_listings_cache": False}
    try:
        # Not `url_to_fs`: that parses `::` in an object's name as a chain of file systems.
        fs = fsspec.filesystem(
            "file" if is_local(url) else url.partition("://")[0], **options, **(store.driver_options() if store else {})
        )
        if store:
            store.adapt(fs)
        path = cast(str, fs._strip_protocol(url))  # noqa: SLF001  (fsspec's own name for what every driver has)
    except ImportError as error:
        raise errors.no_driver(url, error) from error
    except (ValueError, TypeError) as error:  # TypeError: the driver wants more than a URL
        raise ConfigError(f"{url!r} is not a place that fsspec can open: {errors.redact(error)}") from None
    return cast(fsspec.AbstractFileSystem, fs), path


def retried(url: str, what: str, call: Callable[[], T]) -> T:
    """Return the result of `call`, retried with back-off while the store is busy or unreachable.

    `FileNotFoundError` and `FileExistsError` are raised at once: they are results, not failures.

    Raises:
        StorageError: The store refused, or was still busy after the last try.
        ConfigError: There is no such bucket.
    """
    wait_s = FIRST_WAIT_S
    store = providers.of(url)
    attempts = min(ATTEMPTS, store.TRIES) if store else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            if store and isinstance(error, FileNotFoundError) and providers.lacks_bucket(filesystem(url)[0], url):
                raise errors.missing_bucket(url, what) from None
            if errors.is_missing_bucket(error):
                raise errors.to_vectide_error(url, what, error, attempt) from None
            raise
        except Exception as error:  # noqa: BLE001  (drivers agree on no error tree)
            if store and errors.is_expired(error):
                store.forget_clients()  # the next call finds new credentials: `watch` runs for months
            if not errors.is_transient(error) or attempt == attempts:
                raise errors.to_vectide_error(url, what, error, attempt) from None
        finally:
            count_progress()  # any response counts
        time.sleep(wait_s * (0.5 + random.random()))
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)
    raise StorageError(f"{what} {url!r}: no attempt was made")


# ------------------------------------------------------------------------------------------------------------- reading


def _shard(fs: fsspec.AbstractFileSystem, url: str, path: str, info: dict[str, Any]) -> Shard:
    if is_local(url):
        # fsspec's `mtime` is a float: too coarse for two writes within a microsecond.
        stat = os.stat(path)
        return Shard(path, stat.st_size, identity.local_tag(stat), stat.st_mtime)
    return Shard(
        str(fs.unstrip_protocol(path)), int(info.get("size") or 0), identity.tag_of(info), identity.written_s(info)
    )


def _is_folder(name: str, info: dict[str, Any]) -> bool:
    """Return whether an entry is a folder, or an empty object whose name ends with a slash, as consoles create them."""
    return info.get("type") == "directory" or name.endswith("/")


def stat(url: str) -> Shard:
    """Return path, size and etag of one object.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the store refused or failed.
    """
    fs, path = filesystem(url)
    identity.forget_listings(fs)

    def look() -> dict[str, Any]:
        try:
            return cast(dict[str, Any], fs.info(path))
        except Exception as error:
            if errors.is_wordless(error):
                with contextlib.suppress(FileNotFoundError):
                    fs.cat_file(path, start=0, end=1)  # this response can have a reason in its body
            raise

    info = retried(url, "look at", look)
    if info.get("type") == "directory":
        raise FileNotFoundError(f"{url!r} is a folder")
    if info.get("size") is None:  # a server that sends no Content-Length
        raise StorageError(f"{url!r}: its store does not say how large it is, so it cannot be read; copy it to another")
    return _shard(fs, url, path, info)


def exists(url: str) -> bool:
    """Return whether there is an object at `url`."""
    try:
        stat(url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def glob(url: str, is_document: Callable[[str], bool] = lambda _: False) -> Listing:
    """List the objects that `url` names (a glob, one object, or all objects below a folder), and those left out.

    Args:
        url: A glob, object or folder. A glob that ends with a slash matches only folders.
        is_document: Returns whether a path is a text, picture or PDF; if all are, names may begin with `_`.

    Raises:
        StorageError: A folder cannot be listed, or a link not be followed; the message names it.
        ConfigError: `**` is a part of a name, or there is no such bucket.
    """
    fs, path = filesystem(url)
    identity.forget_listings(fs)
    local = is_local(url)

    def again(place: str, what: str, call: Callable[[], T]) -> T:
        return retried(place if local else str(fs.unstrip_protocol(place)), what, call)

    shard = partial(_shard, fs, url)
    return search(
        fs, path, again=again, is_document=is_document, shard=shard, local=local, folders_only=url.endswith("/")
    )


def walk(url: str) -> Iterator[Shard]:
    """Yield every object below a folder, also hidden ones; nothing if there is no folder."""
    fs, path = filesystem(url)
    identity.forget_listings(fs)
    try:
        infos = retried(url, "list", lambda: below(fs, path))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, info in infos.items():
        if not _is_folder(name, info):
            try:
                yield _shard(fs, url, name, info)
            except FileNotFoundError:  # a temporary file that another process has just renamed
                continue


def folders(url: str) -> list[str]:
    """Return the names of the folders directly below a folder; none if there is no such folder."""
    fs, path = filesystem(url)
    try:
        infos = retried(url, "list", lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(info["name"].rstrip("/").rsplit("/", 1)[1] for info in infos if info.get("type") == "directory")


def names(folder: str, name: str) -> list[str]:
    """Return the names directly in the folder `name` of `folder`; none if there is no such folder."""
    fs, path = filesystem(folder)
    subfolder = f"{path.rstrip('/')}/{name}"

    def look() -> list[str]:
        # S3's driver looks for an object first, which is refused without permission for the whole bucket, and then lists
        # the parent of a missing folder. This is one request.
        if folder.partition("://")[0] in s3.PROTOCOLS:
            return cast(list[str], fs.find(path, maxdepth=1, prefix=f"{name}/"))
        return cast(list[str], fs.ls(subfolder, detail=False)) if fs.exists(subfolder) else []

    return [entry.rstrip("/").rpartition("/")[2] for entry in retried(folder, "list", look)]


def open_read(url: str) -> BinaryIO:
    """Open a seekable binary reader of one object. Each read of a store is retried like any other call.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if is_local(url):
        return retried(url, "open", lambda: open(local_path(url), "rb"))
    return io.BufferedReader(RangedFile(partial(read, url), stat(url).size_bytes), READ_BYTES)


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Return the bytes of one object, or of a range of it.

    Raises:
        FileNotFoundError: there is no such object.
    """
    fs, path = filesystem(url)
    return cast(bytes, retried(url, "read", lambda: fs.cat_file(path, start=start, end=stop)))


def open_arrow(url: str) -> pa.NativeFile:
    """Open a random-access Arrow file of one object.

    Local files are not memory-mapped: if another process truncates a mapped file, this process dies of SIGBUS.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if is_local(url):
        return retried(url, "open", lambda: pa.OSFile(str(local_path(url)), "rb"))
    return pa.PythonFile(RangedFile(partial(read, url), stat(url).size_bytes), mode="r")


# ------------------------------------------------------------------------------------------------------------- writing


def put(url: str, data: bytes) -> None:
    """Write a whole object, and replace an existing one. Readers see the old or the new object, never a part."""
    if is_local(url):
        retried(url, "write", lambda: _put_local(local_path(url), data, exclusive=False))
        return
    fs, path = filesystem(url)
    retried(url, "write", lambda: fs.pipe_file(path, data))


def create(url: str, data: bytes) -> bool:
    """Write a whole object unless one exists. Of any number of callers, exactly one succeeds.

    Returns:
        True if this call created the object, False if another caller did. `data` must differ between callers: a retry
        inside a client can be refused because of its own success, so after a refusal or a time-out the object is read
        and compared.

    Raises:
        StorageError: The store failed, and it is unknown whether this call succeeded.
    """
    if is_local(url):
        try:
            retried(url, "create", lambda: _put_local(local_path(url), data, exclusive=True))
        except FileExistsError:
            return read(url) == data
        return True
    fs, path = filesystem(url)

    def attempt() -> bool:
        try:
            fs.pipe_file(path, data, mode="create")
        except Exception as error:
            # Any other error is retried: if the write succeeded, the next try is refused and finds its own object.
            if not errors.is_refused_create(error):
                raise
            return is_ours(error)
        return True

    def is_ours(refusal: Exception) -> bool:
        try:
            return cast(bytes, fs.cat_file(path)) == data
        except FileNotFoundError:
            raise TransientError(f"create {url!r} was refused, yet nothing is there") from refusal

    return retried(url, "create", attempt)


def delete(url: str) -> None:
    """Remove one object, if it exists."""
    fs, path = filesystem(url)
    try:
        retried(url, "delete", lambda: fs.rm_file(path))
    except FileNotFoundError:
        return


def prune(url: str) -> None:
    """Remove empty folders at and below `url` on a local disk; a store has none."""
    if not is_local(url):
        return
    for folder, _, _ in os.walk(local_path(url), topdown=False):
        with contextlib.suppress(OSError):  # not empty, or removed by another process
            os.rmdir(folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((str(path) for path in (folder, *folder.parents) if path.exists()), "/")
        raise ConfigError(f"cannot write below {str(folder)!r}: {file!r} is a file; name another place") from None


def _put_local(path: Path, data: bytes, *, exclusive: bool) -> None:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        _make_folder(path.parent)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    except FileNotFoundError as error:
        # A vacuum removes empty folders and, with a retention of zero, temporary files.
        raise TransientError(f"something removed {str(temporary)!r} while it was written") from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except FileNotFoundError:  # the object and its folder were already removed
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
