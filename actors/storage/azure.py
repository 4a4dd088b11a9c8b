"""Settings of an Azure Blob store for its two clients: adlfs, which is fsspec's driver, and the one inside `deltalake`.

Used by storage and by the table. Both get the same account and credentials, from the variables that adlfs reads or from
Azure's own library: `deltalake` alone supports neither connection strings nor every kind of identity. The trade-off: two
settings of the driver can only be changed on the driver object.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from actors.errors import ConfigError, StorageError
from actors.storage import s3

PROTOCOLS: tuple[str, ...] = ("az", "abfs", "abfss")
PACKAGE = "adlfs"
BUCKET = "container"
PLACE = "AZURE_STORAGE_ACCOUNT_NAME"
CREDENTIALS = (
    "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_STORAGE_CONNECTION_STRING, or run where an identity gives them"
)
TRIES = 8
_SCOPE = "https://storage.azure.com/.default"
_PRINCIPAL = ("client_id", "client_secret", "tenant_id")
_PUBLIC = "core.windows.net"


def _given(name: str) -> str:
    return os.environ.get(f"AZURE_STORAGE_{name.upper()}", "")


def _connection() -> dict[str, str]:
    """Return the parts of the connection string in the environment by their names in lower case; empty without one."""
    parts = (part.partition("=") for part in _given("connection_string").split(";"))
    return {name.strip().lower(): value for name, _, value in parts if value}


def endpoint() -> str | None:
    """Return the endpoint of the store if the environment names another one than the public cloud's."""
    parts = _connection()
    if place := parts.get("blobendpoint"):
        return place.rstrip("/")
    suffix = parts.get("endpointsuffix", _PUBLIC)
    if suffix == _PUBLIC:
        return None
    return f"{parts.get('defaultendpointsprotocol', 'https')}://{parts.get('accountname')}.blob.{suffix}"


def _account() -> str:
    """Return the account's name.

    Raises:
        ConfigError: The environment names none.
    """
    parts = _connection()
    if name := parts.get("accountname") or ("" if parts else _given("account_name")):
        return name
    if parts.get("blobendpoint"):  # with a signature instead of a key, the name may be only in the endpoint
        return parts["blobendpoint"].partition("://")[2].partition(".")[0]
    raise ConfigError(f"no account of Azure is named in the environment. {CREDENTIALS}")


def driver_options() -> dict[str, Any]:
    """Return the options of fsspec's driver, without credentials, which it finds itself.

    Raises:
        ConfigError: The environment names no account.
    """
    _account()
    return {"connection_timeout": 10, "read_timeout": round(s3.ANSWER_S)}


def adapt(fs: Any) -> None:
    """Change two settings of the driver.

    It has its own retries, with waits of 15 seconds, in addition to storage's. And it parses names as URLs, so that a `#`
    truncates a name and two objects become one.
    """
    logging.getLogger("azure").setLevel(logging.CRITICAL)  # errors are raised too, and reported by this package
    fs.service_client._config.retry_policy.total_retries = 0  # noqa: SLF001  (no argument of the driver reaches it)
    fs._strip_protocol = _path_of  # noqa: SLF001  (fsspec's own name in every driver)


def _path_of(url: Any) -> Any:
    if isinstance(url, list):
        return [_path_of(each) for each in url]
    protocol, mark, path = url.partition("://")
    return (path if mark and protocol in PROTOCOLS else url).lstrip("/")


def has_bucket(fs: Any, bucket: str) -> bool:
    """Return whether there is a container of this name: the driver reports a missing container as a missing object."""
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return False
    return True


def forget_clients() -> None:
    """Make fsspec's driver find its credentials again at its next call."""
    import adlfs

    adlfs.AzureBlobFileSystem.clear_instance_cache()


def table_options(url: str) -> dict[str, str]:
    """Return the options for `deltalake`. They contain credentials, so they are never stored or pickled.

    Raises:
        ConfigError: The environment names no account.
        StorageError: There are no credentials.
    """
    parts = _connection()
    options = {**s3.retry_options(), "azure_storage_account_name": _account()}
    key = parts.get("accountkey") if parts else _given("account_key")
    signature = parts.get("sharedaccesssignature") if parts else _given("sas_token")
    if key:
        options["azure_storage_account_key"] = key
    elif signature:
        options["azure_storage_sas_token"] = signature.lstrip("?")
    elif not parts and all(_given(name) for name in _PRINCIPAL):
        options |= {f"azure_storage_{name}": _given(name) for name in _PRINCIPAL}
    elif parts or _given("anon").lower() not in ("", "0", "f", "false"):
        options["azure_skip_signature"] = "true"
    else:
        options["azure_storage_token"] = _token(url)
    if place := endpoint():
        options["azure_storage_endpoint"] = place
        if place.startswith("http://"):
            options["allow_http"] = "true"
    return options


def _token(url: str) -> str:
    from azure.core.exceptions import AzureError

    try:
        return str(_identity().get_token(_SCOPE).token)
    except AzureError:  # its message lists every attempt, over a page
        raise StorageError(f"cannot open {url!r}: no credentials were found. {CREDENTIALS}") from None


@functools.cache
def _identity() -> Any:
    """Return the identity of the machine or the user: a role, a workload identity or a login. It renews its tokens."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()
