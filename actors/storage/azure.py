"""Settings of an Azure Blob store for its two clients: adlfs, which is fsspec's driver, and the one inside `deltalake`.

Used by storage and by the table. Both get the same account and credentials, from the variables that adlfs reads, or from
where Azure's own library finds them: `deltalake` alone knows neither a connection string nor every kind of identity. The
trade-off: two habits of the driver can only be changed on the finished object.
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
    """The parts of the connection string, if the environment has one, by their names in small letters."""
    parts = (part.partition("=") for part in _given("connection_string").split(";"))
    return {name.strip().lower(): value for name, _, value in parts if value}


def endpoint() -> str | None:
    """Where the store answers, if the environment names another place than the public cloud's."""
    parts = _connection()
    if place := parts.get("blobendpoint"):
        return place.rstrip("/")
    suffix = parts.get("endpointsuffix", _PUBLIC)
    if suffix == _PUBLIC:
        return None
    return f"{parts.get('defaultendpointsprotocol', 'https')}://{parts.get('accountname')}.blob.{suffix}"


def _account() -> str:
    """The account's name.

    Raises:
        ConfigError: the environment names none.
    """
    parts = _connection()
    if name := parts.get("accountname") or ("" if parts else _given("account_name")):
        return name
    if parts.get("blobendpoint"):  # with a signature instead of a key, the name may stand in the place only
        return parts["blobendpoint"].partition("://")[2].partition(".")[0]
    raise ConfigError(f"nothing says which account of Azure is meant. {CREDENTIALS}")


def driver_options() -> dict[str, Any]:
    """What fsspec's driver is made with. Credentials are not among it: it finds them itself.

    Raises:
        ConfigError: the environment names no account.
    """
    _account()
    return {"connection_timeout": 10, "read_timeout": round(s3.ANSWER_S)}


def adapt(fs: Any) -> None:
    """Change two habits of the driver: tries of its own, with waits of a quarter of a minute, on top of storage's; and
    names that it takes for URLs, so that a `#` in one of them cuts it short and two objects become one."""
    logging.getLogger("azure").setLevel(logging.CRITICAL)  # what fails is raised too, and told by us
    fs.service_client._config.retry_policy.total_retries = 0  # noqa: SLF001  (no argument of the driver reaches it)
    fs._strip_protocol = _path_of  # noqa: SLF001  (fsspec's own name for what every driver has)


def _path_of(url: Any) -> Any:
    if isinstance(url, list):
        return [_path_of(each) for each in url]
    protocol, mark, path = url.partition("://")
    return (path if mark and protocol in PROTOCOLS else url).lstrip("/")


def has_bucket(fs: Any, bucket: str) -> bool:
    """Whether there is a container of this name; the driver does not say so when it misses an object in it."""
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return False
    return True


def forget_clients() -> None:
    """Let fsspec's driver find its credentials anew at its next call."""
    import adlfs

    adlfs.AzureBlobFileSystem.clear_instance_cache()


def table_options(url: str) -> dict[str, str]:
    """What `deltalake` is told. Never kept and never pickled: it holds the credentials.

    Raises:
        ConfigError: the environment names no account.
        StorageError: there are no credentials.
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
    except AzureError:  # its message lists everything that it tried, over a page
        raise StorageError(f"cannot open {url!r}: no credentials were found. {CREDENTIALS}") from None


@functools.cache
def _identity() -> Any:
    """The identity of the machine or the person: a role, a workload's, a login. It keeps its tokens and renews them."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()
