"""Settings of the store of a URL: S3, Azure or Google. Used by storage, by the table and by the error messages.

Each store is a module with the same names. The trade-off: other protocols of fsspec work too, with their drivers' own
settings, but `deltalake` and the error messages do not support them.
"""

from __future__ import annotations

from typing import Any, Protocol

from actors.storage import azure, gcs, s3


class Store(Protocol):
    """Interface of the module of a store.

    Attributes:
        PROTOCOLS: Protocols of its URLs.
        PACKAGE: Name of its driver for pip.
        BUCKET: Its word for a bucket.
        PLACE: The environment variable with its endpoint.
        CREDENTIALS: A sentence on how to provide them.
        TRIES: Maximum number of attempts of a call by storage.
    """

    PROTOCOLS: tuple[str, ...]
    PACKAGE: str
    BUCKET: str
    PLACE: str
    CREDENTIALS: str
    TRIES: int

    def endpoint(self) -> str | None:
        """Return the endpoint if the environment names another one than the public one."""

    def driver_options(self) -> dict[str, Any]:
        """Return the options of fsspec's driver, without credentials."""

    def adapt(self, fs: Any) -> None:
        """Change settings that have no option of the driver; called each time."""

    def has_bucket(self, fs: Any, bucket: str) -> bool:
        """Return whether there is such a bucket; called if an object in it is missing."""

    def forget_clients(self) -> None:
        """Make the driver find its credentials again."""

    def table_options(self, url: str) -> dict[str, str]:
        """Return the options for `deltalake`, with credentials."""


STORES: tuple[Store, ...] = (s3, azure, gcs)
_SEEN: set[str] = set()  # existing buckets, so that each is checked once per process


def of(url: str) -> Store | None:
    """Return the settings for a URL; None for a local disk, and for a store that only fsspec supports."""
    protocol, mark, _ = url.partition("://")
    return next((store for store in STORES if mark and protocol in store.PROTOCOLS), None)


def spelled(url: str) -> str:
    """Return a URL that both clients accept: for `gcs://`, `deltalake` uses a third client with other credentials."""
    return url.replace("gcs://", "gs://", 1) if url.startswith("gcs://") else url


def bucket_of(url: str) -> str:
    """Return the first part of a URL's path."""
    return url.partition("://")[2].partition("/")[0]


def lacks_bucket(fs: Any, url: str) -> bool:
    """Return whether the whole bucket of a missing object is missing, if the driver does not report the difference."""
    store, bucket = of(url), bucket_of(url)
    name = f"{url.partition('://')[0]}://{bucket}"
    if store is None or name in _SEEN:
        return False
    try:
        exists = store.has_bucket(fs, bucket)
    except Exception:  # noqa: BLE001  (drivers share no error hierarchy; without the permission the bucket counts as existing)
        return False
    if exists:
        _SEEN.add(name)
    return not exists
