"""Submits a run as a Ray job to a cluster, and follows it.

Called by `vectide submit`. It uploads the three packages and the job file, and nothing else of the checkout: no .git, no
virtual environment, no data. The libraries are those of the cluster's environment. The name of the Ray job is a hash of the
job file and the command, so a second submit finds the first one while it runs, and follows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import actors
from actors import storage
from actors.errors import ConfigError, InvariantBroken, VectideError
from pipeline.job.config import Job
from pipeline.job.load import AnyJob
from pipeline.job.places import models, places

PACKAGES = ("jobs", "pipeline", "actors")
POLL_S = 1.0
_MAX_FAILED_POLLS = 60  # in a row, before `follow` gives up on the dashboard
_SUBMIT_TRIES = 5
_PASSED_VARIABLES = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "STORAGE_EMULATOR_HOST",
)


def submit(job: AnyJob, address: str, out: IO[str], *, command: str = "backfill", detach: bool = False) -> int:
    """Submit a job, or find it if it runs already; follow its log, and wait for its end.

    Args:
        job: The job. Local paths in it are made absolute; the cluster's nodes must have the same paths.
        address: URL of the cluster's dashboard.
        out: Receives the job's log.
        command: `backfill`, `refresh`, `curate` or `train`.
        detach: Return once the job is submitted.

    Returns:
        The exit code of the job; 0 if detached.

    Raises:
        ConfigError: no dashboard answers at `address`, or its token is not on this machine.
        VectideError: the cluster refused the job, or its dashboard did not answer for `_MAX_FAILED_POLLS` polls.
    """
    if isinstance(job, Job):
        job.encoder.check_adapters_readable(address)
    client = _client(address)
    try:
        submission, is_new = _submit(client, job, command)
    except (RuntimeError, OSError) as error:
        raise VectideError(f"{address} refused the job: {error}") from error
    message = f"submitted {submission} to {address}" if is_new else f"{submission} already runs at {address}"
    print(message, file=out, flush=True)
    if detach:
        print(f"the same command without --detach follows it; ray job stop {submission} ends it", file=out, flush=True)
        return 0
    return follow(client, submission, out)


def _client(address: str) -> JobSubmissionClient:
    if not re.match(r"https?://", address):
        raise ConfigError(f"--address {address!r} must be the URL of the cluster's dashboard, as in http://head:8265")
    token = _token()
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            # Without RAY_AUTH_MODE=token, Ray's client does not send its token, even to a cluster that requires one.
            if token is None or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
                raise
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError:
        reason = "the token on this machine is wrong" if token else "there is none on this machine"
        raise ConfigError(
            f"--address {address!r} requires the cluster's token, and {reason}. Put it into RAY_AUTH_TOKEN, into a file "
            f"named by RAY_AUTH_TOKEN_PATH, or into ~/.ray/auth_token; on the head, `ray get-auth-token` prints it"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"--address {address!r}: no Ray dashboard answers there ({error})") from error


def _token() -> str | None:
    """Return the cluster's token from the places where Ray looks, in Ray's order. It is only sent in a header.

    Raises:
        ConfigError: the file at RAY_AUTH_TOKEN_PATH cannot be read. Ray would abort the process.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        token = (
            (Path(token_path) if token_path else Path.home() / ".ray" / "auth_token")
            .read_text(encoding="utf-8")
            .strip()
        )
    except OSError as error:
        if token_path:
            raise ConfigError(
                f"RAY_AUTH_TOKEN_PATH {token_path!r} cannot be read: {error.strerror}; set it to a readable file"
            ) from None
        return None
    return token or None


def _submit(client: JobSubmissionClient, job: AnyJob, command: str) -> tuple[str, bool]:
    """Return the submission's id, and True if this call submitted it."""
    with tempfile.TemporaryDirectory(prefix="vectide-") as folder:
        name = job_name(stage(job, Path(folder)), command)
        for tries_left in reversed(range(_SUBMIT_TRIES)):
            number, running = _last(client, name)
            if running:
                return f"{name}-{number}", False
            submission = f"{name}-{number + 1}"
            try:
                client.submit_job(
                    entrypoint=f"python -m jobs {command} job.yaml",
                    submission_id=submission,
                    runtime_env={"working_dir": folder, "env_vars": _environment()},
                )
            except RuntimeError:
                # Another process took the id first, or a new cluster is not ready yet.
                if not tries_left:
                    raise
                time.sleep(POLL_S)
            else:
                return submission, True
    raise InvariantBroken("submit ended without an answer")


def job_name(document: dict[str, Any], command: str) -> str:
    """Return the name of a job on a cluster: a hash of the job and the command.

    The source's content is not part of it: a second call finds the first run although the source changed meanwhile.
    """
    identity = json.dumps([command, document], sort_keys=True).encode()
    return f"vectide-{command}-{hashlib.sha256(identity).hexdigest()[:12]}"


def _last(client: JobSubmissionClient, name: str) -> tuple[int, bool]:
    """Return the highest number of the jobs with this name, 0 if there is none, and True if that job still runs."""
    status_by_number = {}
    for details in client.list_jobs():
        if match := re.fullmatch(rf"{re.escape(name)}-(\d+)", details.submission_id or ""):
            status_by_number[int(match.group(1))] = JobStatus(details.status)
    if not status_by_number:
        return 0, False
    number = max(status_by_number)
    return number, not status_by_number[number].is_terminal()


def stage(job: AnyJob, folder: Path) -> dict[str, Any]:
    """Copy the packages into a folder, write the job file with absolute paths there, and return the job file's document."""
    root = Path(actors.__file__).parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    document: dict[str, Any] = job.model_dump(mode="json", exclude_none=True)
    for _, section, key in places(document):
        section[key] = storage.absolute(section[key])
    for _, section, key in models(document):
        if Path(section[key]).exists():
            section[key] = str(Path(section[key]).absolute())
    document["run"]["address"] = "auto"
    (folder / "job.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return document


def _environment() -> dict[str, str]:
    """Return the environment variables for the job. Credentials are left out: the dashboard shows these variables."""
    variables = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    return {name: value for name, value in variables.items() if not urlsplit(value).password}


def follow(client: JobSubmissionClient, submission: str, out: IO[str]) -> int:
    """Copy a job's log to `out` until the job ends, and return its exit code.

    Raises:
        VectideError: the dashboard did not answer for `_MAX_FAILED_POLLS` polls.
    """
    shown_characters = failed_polls = 0
    while True:
        try:
            status = client.get_job_status(submission)
            logs = client.get_job_logs(submission)
            failed_polls = 0
        except (RuntimeError, OSError) as error:
            failed_polls += 1
            if failed_polls >= _MAX_FAILED_POLLS:
                raise VectideError(
                    f"the dashboard no longer answers for {submission} ({error}). The job itself may still run; the same command "
                    f"follows it again"
                ) from error
            time.sleep(POLL_S)
            continue
        if len(logs) > shown_characters:
            out.write(logs[shown_characters:])
            out.flush()
            shown_characters = len(logs)
        if status.is_terminal():
            break
        time.sleep(POLL_S)
    info = client.get_job_info(submission)
    print(f"{submission}: {status.value.lower()}", file=out, flush=True)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if status is JobStatus.SUCCEEDED else 1
