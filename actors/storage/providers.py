"""Which settings belong to a URL: those of S3, Azure or Google. Used by storage, by the table and by what explains errors.

Each store is a module with the same names in it. The trade-off: another protocol of fsspec's works too, by its driver's
own settings, but `deltalake` and the sentences about errors know nothing of it.
"""

from __future__ import annotations

from typing import Any, Protocol

from actors.storage import azure, gcs, s3


class Store(Protocol):
    """What the module of a store has.

    Attributes:
        PROTOCOLS: How its URLs begin.
        PACKAGE: What pip installs for it.
        BUCKET: What it calls a bucket.
        PLACE: The variable that says where it answers.
        CREDENTIALS: How to give them, as a sentence.
        TRIES: How often storage tries a call, at most.
    """

    PROTOCOLS: tuple[str, ...]
    PACKAGE: str
    BUCKET: str
    PLACE: str
    CREDENTIALS: str
    TRIES: int

    def endpoint(self) -> str | None:
        """Where the store answers, if the environment names another place than the public one."""

    def driver_options(self) -> dict[str, Any]:
        """What fsspec's driver is made with, without credentials."""

    def adapt(self, fs: Any) -> None:
        """Change what only the finished driver lets one change; done again at every call."""

    def has_bucket(self, fs: Any, bucket: str) -> bool:
        """Whether there is such a bucket, asked when an object in it is missing."""

    def forget_clients(self) -> None:
        """Let the driver find its credentials anew."""

    def table_options(self, url: str) -> dict[str, str]:
        """What `deltalake` is told, with credentials."""


STORES: tuple[Store, ...] = (s3, azure, gcs)
_SEEN: set[str] = set()  # buckets that are there, so that each is asked for once in a process


def of(url: str) -> Store | None:
    """The settings for a URL; None for a local disk, and for a store that fsspec alone knows."""
    protocol, mark, _ = url.partition("://")
    return next((store for store in STORES if mark and protocol in store.PROTOCOLS), None)


def spelled(url: str) -> str:
    """A URL in the spelling that both clients take: `gcs://` sends `deltalake` to a third one, with other credentials."""
    return url.replace("gcs://", "gs://", 1) if url.startswith("gcs://") else url


def bucket_of(url: str) -> str:
    """The first part of a URL's path."""
    return url.partition("://")[2].partition("/")[0]


def lacks_bucket(fs: Any, url: str) -> bool:
    """Whether not only an object is missing but its whole bucket, where the driver makes no difference."""
    store, bucket = of(url), bucket_of(url)
    name = f"{url.partition('://')[0]}://{bucket}"
    if store is None or name in _SEEN:
        return False
    try:
        there = store.has_bucket(fs, bucket)
    except Exception:  # noqa: BLE001  (drivers agree on no error tree, and not everybody may ask: then it is there)
        return False
    if there:
        _SEEN.add(name)
    return not there
