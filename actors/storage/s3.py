"""Settings of an S3 store for its two clients: fsspec's driver and the object store inside `deltalake`.

Used by storage and by the table. Both get the same endpoint, region and credentials, from the environment, a profile or
a role: `deltalake` alone would look in fewer places. The trade-off: its credentials are found anew each time a table
is opened, which costs milliseconds and means that they are never older than that.
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
    """Where the store answers, if the environment names another place than AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    """The region, if the environment names one. The driver's own library knows the second name only."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def driver_options() -> dict[str, Any]:
    """What fsspec's driver is made with. Credentials are not among it: it finds them itself."""
    client = {"endpoint_url": endpoint(), "region_name": _region()}
    config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": ANSWER_S, "max_pool_connections": CONNECTIONS}
    config["retries"] = {"total_max_attempts": DRIVER_TRIES, "mode": "standard"}
    # Gateways older than the trailing checksums answer 411 to them; AWS itself does not need them for safety.
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        config[name] = os.environ.get(f"AWS_{name.upper()}", "when_required")
    return {"client_kwargs": {key: value for key, value in client.items() if value}, "config_kwargs": config}


def adapt(fs: Any) -> None:
    """Take the driver's own tries away: on top of botocore's and of ours, a busy store would be asked 90 times."""
    fs.retries = 1


def has_bucket(fs: Any, bucket: str) -> bool:  # noqa: ARG001  (each store has a function of this name)
    """Always: a store of this kind says so itself when a whole bucket is missing."""
    return True


def forget_clients() -> None:
    """Let fsspec's driver find its credentials anew at its next call; those of a file or a variable it never renews."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def retry_options() -> dict[str, str]:
    """How long the client inside `deltalake` waits and how often it tries: as long and as often as storage does."""
    return {
        "max_retries": str(TABLE_RETRIES),
        "retry_timeout": "120s",
        "timeout": f"{round(ANSWER_S * 1000)}ms",
        "backoff_config.init_backoff": f"{TABLE_FIRST_WAIT_MS}ms",
        "backoff_config.max_backoff": f"{TABLE_LONGEST_WAIT_MS}ms",
    }


def table_options(url: str) -> dict[str, str]:
    """What `deltalake` is told. Never kept and never pickled: it holds the credentials.

    Raises:
        StorageError: there are no credentials.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.Session()
        found = session.get_credentials()
        keys = found.get_frozen_credentials() if found is not None else None
        region = _region() or session.get_config_variable("region")
    except BotoCoreError as error:
        raise StorageError(f"cannot open {url!r}: {error}. Check AWS_PROFILE and the files of credentials") from None
    if keys is None:
        raise StorageError(f"cannot open {url!r}: no credentials were found. {CREDENTIALS}")
    options = {
        "AWS_CONDITIONAL_PUT": "etag",
        **retry_options(),
        "AWS_REGION": region
        or "us-east-1",  # gateways of one's own take any; AWS names the right one if this is not it
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
    }
    if keys.token:
        options["AWS_SESSION_TOKEN"] = keys.token
    if place := endpoint():
        options["AWS_ENDPOINT_URL"] = place
        if place.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    return options
