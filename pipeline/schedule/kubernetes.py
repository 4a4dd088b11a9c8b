"""Manifests for Kubernetes with KubeRay: a CronJob that makes a RayJob, or a RayCronJob.

Used by `jobs schedule`. A RayJob rather than `vectide submit` to a cluster that stands: the GPUs are there for as long as
the run, and a run with another image needs no new cluster. The pod of the CronJob makes the RayJob and waits for its end,
so that `concurrencyPolicy: Forbid` means the run and not the moment of its start. What the cluster looks like is read from
a RayJob of the user's (`deploy/rayjob.yaml`); only what is to run is put into it.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import yaml

from actors import storage
from actors.errors import ConfigError
from pipeline.config import Job
from pipeline.schedule.cron import Cron

FOLDER = "/etc/vectide"
LONGEST_NAME = 36  # a RayJob's is 47 at most, and the CronJob adds 11
KUBECTL = "alpine/k8s:1.34.1"  # any image with kubectl and a shell
_VOLUME = "vectide-job"
_FAILED = 3

# Found again by a pod that takes over from one that was moved; the RayJob belongs to the Job, and goes with it.
_SCRIPT = f"""set -eu
kubectl get rayjob "$RUN" >/dev/null 2>&1 ||
  sed -e "s/RUN_NAME/$RUN/" -e "s/RUN_OWNER/$OWNER/" {FOLDER}/rayjob.yaml | kubectl create -f -
while true; do
  if state=$(kubectl get rayjob "$RUN" --ignore-not-found -o 'jsonpath=is {{.status.jobDeploymentStatus}}'); then
    case "$state" in
      "is Complete") exit 0 ;;
      "is Failed") kubectl get rayjob "$RUN" -o 'jsonpath={{.status.message}}' || true; exit {_FAILED} ;;
      "") echo "$RUN was deleted"; exit {_FAILED} ;;
    esac
  fi
  sleep "${{POLL_S:-15}}"
done
"""


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are read."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the signature is yaml's)
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(*documents: Any) -> str:
    """Documents as one YAML stream."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)


def schedule_name(job: Job, stem: str) -> str:
    """A name for a job's schedule: the same job file and table give the same one, so that applying it twice changes it."""
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem.lower())
    digest = hashlib.sha256(storage.absolute(job.table.uri).encode()).hexdigest()[:6]
    return f"vectide-{readable[: LONGEST_NAME - 15].strip('-') or 'job'}-{digest}"


def read_rayjob(path: Path) -> dict[str, Any]:
    """The RayJob whose cluster is wanted.

    Raises:
        ConfigError: the file cannot be read or is not one RayJob with a cluster of its own.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the RayJob {str(path)!r}: {error.strerror or error}; name one with --rayjob, as in "
            f"--rayjob deploy/rayjob.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not one YAML document: {' '.join(str(error).split())}") from None
    try:
        cluster = document["spec"]["rayClusterSpec"]
        containers = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        if document["kind"] != "RayJob" or not containers:
            raise KeyError("kind")
    except (KeyError, TypeError):
        raise ConfigError(
            f"{str(path)!r} must be a RayJob with spec.rayClusterSpec, whose head has a container; begin with "
            f"deploy/rayjob.yaml"
        ) from None
    found: dict[str, Any] = document
    return found


def job_text(job: Job) -> str:
    """The job file for a pod.

    Raises:
        ConfigError: a place in it means nothing in a pod.
    """
    document = job.model_dump(mode="json", exclude_none=True)
    document["run"]["address"] = "auto"
    for section in ("source", "table"):
        uri = document[section]["uri"]
        if storage.is_local(uri) and not uri.startswith(("/", "file:///")):
            raise ConfigError(
                f"{section}.uri {uri!r} is relative to this machine's folder; a pod has another one. Use an object store, "
                f"or the full path of a volume that every pod mounts"
            )
    if Path(job.encoder.model).is_dir() and not Path(job.encoder.model).is_absolute():
        raise ConfigError(
            f"encoder.model {job.encoder.model!r} is a folder of this machine; use a hub id, or the full path of the "
            f"folder in the pods (docs/models.md)"
        )
    return to_yaml(document)


def rayjob_spec(rayjob: dict[str, Any], name: str, command: str) -> dict[str, Any]:
    """The RayJob's spec with what is to run: the job file from ConfigMap `name`, mounted on the head."""
    spec: dict[str, Any] = copy.deepcopy(rayjob["spec"])
    spec["entrypoint"] = f"vectide {command} {FOLDER}/job.yaml"
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = [volume for volume in pod.get("volumes", []) if volume["name"] != _VOLUME]
    items = [{"key": "job.yaml", "path": "job.yaml"}]
    pod["volumes"] = [*volumes, {"name": _VOLUME, "configMap": {"name": name, "items": items}}]
    head = pod["containers"][0]
    mounts = [mount for mount in head.get("volumeMounts", []) if mount["name"] != _VOLUME]
    head["volumeMounts"] = [*mounts, {"name": _VOLUME, "mountPath": FOLDER, "readOnly": True}]
    return spec


def ray_cron_job(job: Job, cron: Cron, rayjob: dict[str, Any], *, name: str, command: str) -> list[dict[str, Any]]:
    """A ConfigMap and a RayCronJob (alpha: KubeRay 1.6 with the feature gate RayCronJob)."""
    metadata = _metadata(rayjob, name)
    template = rayjob_spec(rayjob, name, command)
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.yaml": job_text(job)}},
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCronJob",
            "metadata": metadata,
            "spec": {"schedule": cron.text, "jobTemplate": template},
        },
    ]


def cron_job(job: Job, cron: Cron, rayjob: dict[str, Any], *, name: str, command: str) -> list[dict[str, Any]]:
    """A ConfigMap with job and RayJob, the rights to make one, and the CronJob that does."""
    metadata = _metadata(rayjob, name)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "RUN_NAME", "uid": "RUN_OWNER"}
    made = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {**metadata, "name": "RUN_NAME", "ownerReferences": [owner]},
        "spec": rayjob_spec(rayjob, name, command),
    }
    data = {"job.yaml": job_text(job), "rayjob.yaml": to_yaml(made)}
    rule = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": metadata["namespace"]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": role,
            "subjects": [subject],
        },
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": _cron_spec(cron, name)},
    ]


def _metadata(rayjob: dict[str, Any], name: str) -> dict[str, Any]:
    namespace = rayjob.get("metadata", {}).get("namespace", "default")
    return {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "vectide"}}


def _cron_spec(cron: Cron, name: str) -> dict[str, Any]:
    label = "metadata.labels['batch.kubernetes.io/{}']"
    environment = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": label.format(field)}}}
        for variable, field in (("RUN", "job-name"), ("OWNER", "controller-uid"))
    ]
    container = {
        "name": "kubectl",
        "image": KUBECTL,
        "command": ["sh", "-c", _SCRIPT],
        "env": environment,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "volumeMounts": [{"name": _VOLUME, "mountPath": FOLDER, "readOnly": True}],
    }
    pod = {
        "serviceAccountName": name,
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": _VOLUME, "configMap": {"name": name}}],
    }
    # A pod that is moved is made again and finds its RayJob; a run that failed is not repeated before its next time.
    failed = {"containerName": "kubectl", "operator": "In", "values": [_FAILED]}
    job = {
        "backoffLimit": 6,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": failed}]},
        "template": {"spec": pod},
    }
    return {
        "schedule": cron.text,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": job},
    }
