"""Settings of an S3 store for its two clients: fsspec's driver and the object store inside `deltalake`.

Used by storage and by the table. Both get the same endpoint, region and credentials, from the environment, a profile or
a role: `deltalake` alone supports fewer sources of credentials. The trade-off: its credentials are looked up each time a
table is opened. That costs milliseconds, and the credentials are never older than that.
"""

from __future__ import annotations

import os
from typing import Any

from actors.errors import StorageError

PROTOCOLS: tuple[str, ...] = ("s3", "s3a")
PACKAGE = "s3fs"
BUCKET = "bucket"
PLACE = "AWS_ENDPOINT_URL"
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role gives them"
TRIES = 8
DRIVER_TRIES = 2  # of one request inside fsspec's driver; storage has tries of its own on top
TABLE_RETRIES = 12  # of one request inside `deltalake`, about half a minute: as patient as storage
TABLE_FIRST_WAIT_MS, TABLE_LONGEST_WAIT_MS = 200, 10_000
ANSWER_S = 60.0  # how long either client waits for an answer
CONNECTIONS = 32  # to one store, from one process: as many as the ledger has threads


def endpoint() -> str | None:
    """Return the endpoint of the store if the environment names another one than AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    """Return the region if the environment names one. The driver's own library knows only the second name."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def driver_options() -> dict[str, Any]:
    """Return the options of fsspec's driver, without credentials, which it finds itself."""
    client = {"endpoint_url": endpoint(), "region_name": _region()}
    config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": ANSWER_S, "max_pool_connections": CONNECTIONS}
    config["retries"] = {"total_max_attempts": DRIVER_TRIES, "mode": "standard"}
    # Gateways without support for trailing checksums respond with 411; AWS does not need them for safety.
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        config[name] = os.environ.get(f"AWS_{name.upper()}", "when_required")
    return {"client_kwargs": {key: value for key, value in client.items() if value}, "config_kwargs": config}


def adapt(fs: Any) -> None:
    """Turn off the driver's own retries: with those of botocore and storage, a busy store would get 90 requests."""
    fs.retries = 1


def has_bucket(fs: Any, bucket: str) -> bool:  # noqa: ARG001  (each store has a function of this name)
    """Return True: S3 itself reports a missing bucket."""
    return True


def forget_clients() -> None:
    """Make fsspec's driver find its credentials again: it never renews those from a file or a variable."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def retry_options() -> dict[str, str]:
    """Return the waits and retries of the client inside `deltalake`, which are those of storage."""
    return {
        "max_retries": str(TABLE_RETRIES),
        "retry_timeout": "120s",
        "timeout": f"{round(ANSWER_S * 1000)}ms",
        "backoff_config.init_backoff": f"{TABLE_FIRST_WAIT_MS}ms",
        "backoff_config.max_backoff": f"{TABLE_LONGEST_WAIT_MS}ms",
    }


def table_options(url: str) -> dict[str, str]:
    """Return the options for `deltalake`. They contain credentials, so they are never stored or pickled.

    Raises:
        StorageError: There are no credentials.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.Session()
        credentials = session.get_credentials()
        keys = credentials.get_frozen_credentials() if credentials is not None else None
        region = _region() or session.get_config_variable("region")
    except BotoCoreError as error:
        raise StorageError(f"cannot open {url!r}: {error}. Check AWS_PROFILE and the files of credentials") from None
    if keys is None:
        raise StorageError(f"cannot open {url!r}: no credentials were found. {CREDENTIALS}")
    options = {
        "AWS_CONDITIONAL_PUT": "etag",
        **retry_options(),
        "AWS_REGION": region or "us-east-1",  # private gateways accept any region; AWS returns the right one otherwise
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
    }
    if keys.token:
        options["AWS_SESSION_TOKEN"] = keys.token
    if url_of_store := endpoint():
        options["AWS_ENDPOINT_URL"] = url_of_store
        if url_of_store.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    return options
