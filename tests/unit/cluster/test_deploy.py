"""Checks of manifests, in deploy/ and from `vectide schedule`, against the schemas of Kubernetes and KubeRay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from actors.errors import ConfigError
from jobs.cli import app
from pipeline.cluster import schedule
from pipeline.cluster.schedule import render
from pipeline.job.load import load_job

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
KUBERAY = json.loads((ROOT / "tests" / "schemas" / "kuberay.json").read_text())
KUBERNETES = "1.33"
CRON = "0 3 * * *"


def check(document: dict[str, Any]) -> None:
    """Validate a document by the schema of its kind, and pod templates by that of Kubernetes."""
    if document["apiVersion"] == "ray.io/v1":
        jsonschema.validate(document, {"$ref": f"#/$defs/{document['kind']}", "$defs": KUBERAY["$defs"]})
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "pod"},
                "template": group["template"],
            }
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def read(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["schedule", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (document,) = [document for document in documents if document["kind"] == kind]
    return document


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml", "cronjob.yaml"])
def test_manifests_in_deploy_are_valid(name):
    documents = read(name)
    for document in documents:
        check(document)
    assert documents


def test_schedule_prints_the_files_in_deploy(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vectide").touch()
    (tmp_path / "job.yaml").write_text((DEPLOY / "job.yaml").read_text())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    texts = {
        "cronjob.yaml": printed("job.yaml", "--cron", CRON, "--target", "kubernetes"),
        "crontab": printed("job.yaml", "--cron", CRON, "--target", "crontab"),
        "rayjob.yaml": (resources.files(schedule) / "templates" / "rayjob.yaml").read_text(),
    }
    service, timer = printed("job.yaml", "--on-calendar", "*-*-* 03:00:00", "--target", "systemd").split("\n\n# ")
    texts |= {"vectide.service": f"{service}\n", "vectide.timer": f"# {timer}"}
    for name, text in texts.items():
        assert text.replace(str(tmp_path), "/srv/vectide") == (DEPLOY / name).read_text()


def test_a_wheel_has_the_templates():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "templates/*" in project["tool"]["setuptools"]["package-data"]["*"]
    names = {template.name for template in (resources.files(schedule) / "templates").iterdir()}
    assert names == {"cronjob.yaml", "crontab", "rayjob.yaml", "vectide.service", "vectide.timer"}


def test_a_rayjob_of_the_user_keeps_its_own_settings(tmp_path):
    (document,) = read("rayjob.yaml")
    document["metadata"]["namespace"] = "123"
    pod = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    pod["containers"][0].pop("volumeMounts")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    text = printed(
        *(str(DEPLOY / "job.yaml"), "--cron", CRON, "--target", "kubernetes", "--command", "backfill"),
        *("--rayjob", str(tmp_path / "mine.yaml")),
    )
    documents = list(yaml.safe_load_all(text))
    for manifest in documents:
        check(manifest)
        assert manifest["metadata"]["namespace"] == "123"
    rayjob = yaml.safe_load(of_kind(documents, "ConfigMap")["data"]["rayjob.yaml"])
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert [volume["name"] for volume in head["volumes"]] == ["scratch", "vectide-job"]
    assert [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]] == ["/etc/vectide"]
    assert rayjob["spec"]["entrypoint"] == "vectide backfill /etc/vectide/job.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entrypont"), "x"),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "imge"), "x"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("metadata", "name"), "a" * 48),
    ],
)
def test_the_schemas_find_a_mistake(path, value):
    (document,) = read("rayjob.yaml")
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_a_mistake_in_a_cronjob_is_found():
    document = of_kind(read("cronjob.yaml"), "CronJob")
    document["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(document)


def test_a_cronjob_never_runs_twice_and_waits_for_its_run():
    documents = read("cronjob.yaml")
    spec = of_kind(documents, "CronJob")["spec"]
    assert (spec["concurrencyPolicy"], spec["startingDeadlineSeconds"] > 0) == ("Forbid", True)
    assert min(spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) > 0
    rule = of_kind(documents, "Role")["rules"]
    assert rule == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}]
    data = of_kind(documents, "ConfigMap")["data"]
    rayjob = yaml.safe_load(data["rayjob.yaml"])
    check({**rayjob, "metadata": {**rayjob["metadata"], "name": "run-1"}})
    assert rayjob["metadata"]["ownerReferences"][0]["kind"] == "Job"
    assert rayjob["spec"]["entrypoint"] == "vectide refresh /etc/vectide/job.yaml"


def test_the_job_file_of_a_pod_is_the_same_job(tmp_path):
    job = load_job(str(DEPLOY / "job.yaml"))
    (tmp_path / "job.yaml").write_text(render.job_text(job))
    assert load_job(str(tmp_path / "job.yaml")) == job


def test_heads_run_no_tasks_and_gpu_workers_are_spot():
    for name in ("rayjob.yaml", "raycluster.yaml"):
        (document,) = read(name)
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        (gpu,) = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu"]
        pod = gpu["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        assert cluster["authOptions"] == {"mode": "token"}
        for group in cluster["workerGroupSpecs"]:
            cpu = group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
            assert group["rayStartParams"]["num-cpus"] == cpu


def test_deploy_and_constraints_name_one_version_of_ray():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"FROM rayproject/ray:{pinned.group(1)}-py311-gpu" in (DEPLOY / "Dockerfile").read_text()
    for name in ("rayjob.yaml", "raycluster.yaml"):
        (document,) = read(name)
        assert document["spec"].get("rayClusterSpec", document["spec"])["rayVersion"] == pinned.group(1)


def test_the_job_has_a_replica_for_each_gpu_of_its_cluster():
    (document,) = read("rayjob.yaml")
    (gpu,) = [group for group in document["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    run = load_job(str(DEPLOY / "job.yaml")).run
    assert isinstance(run.replicas, int)
    assert isinstance(run.gpus_per_replica, float)
    assert run.replicas * run.gpus_per_replica == gpu["replicas"] == gpu["minReplicas"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("source.uri=corpus/*.parquet", "relative to this machine's folder"),
        ("table.uri=s3://key:secret@lake/wiki", "has credentials in it"),
        ("encoder.model=tests", "is a folder of this machine"),
    ],
)
def test_a_path_without_meaning_in_a_pod_is_refused(setting, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message) as refused:
        render.job_text(load_job(str(DEPLOY / "job.yaml"), settings=[setting]))
    assert "secret" not in str(refused.value)


NO_RAYJOB = ["", "kind: RayCluster", "kind: RayJob\nspec: {clusterSelector: {a: b}}", "[", "- 1"]
NO_HEAD = "kind: RayJob\nspec: {rayClusterSpec: {headGroupSpec: {template: {spec: {containers: []}}}}}"
NO_NAMESPACE = (DEPLOY / "rayjob.yaml").read_text().replace("namespace: default", "namespace: 'a\", b: \"c'")


@pytest.mark.parametrize("text", [*NO_RAYJOB, NO_HEAD, NO_NAMESPACE])
def test_an_invalid_rayjob_is_refused(text, tmp_path):
    (tmp_path / "rayjob.yaml").write_text(text)
    job = load_job(str(DEPLOY / "job.yaml"))
    with pytest.raises(ConfigError, match="rayjob.yaml"):
        render.kubernetes(job, CRON, tmp_path / "rayjob.yaml", name="n", command="refresh")
    with pytest.raises(ConfigError, match="--rayjob"):
        render.kubernetes(job, CRON, tmp_path / "nowhere.yaml", name="n", command="refresh")


def test_a_schedule_name_is_short_and_depends_on_the_table():
    job = load_job(str(DEPLOY / "job.yaml"))
    other = load_job(str(DEPLOY / "job.yaml"), settings=["table.uri=s3://lake/other"])
    names = {render.schedule_name(job, stem) for stem in ("Wiki EN", "x" * 99, "___", "日本")}
    names.add(render.schedule_name(other, "Wiki EN"))
    assert len(names) == 4
    assert all(re.fullmatch(r"vectide-[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    assert max(map(len, names)) <= render.MAX_NAME_CHARACTERS


KUBECTL = """#!/bin/sh
# Simulates a cluster: a file for each RayJob, and a list of its states.
echo "$*" >> "$STORE/calls"
case "$1" in
  create) cat > "$STORE/$RUN"; exit 0 ;;
  get)
    [ -e "$STORE/$RUN" ] || { case "$*" in *ignore-not-found*) exit 0 ;; *) exit 1 ;; esac; }
    case "$*" in
      *ignore-not-found*)
        [ -s "$STORE/states" ] || exit 0
        state=$(head -n 1 "$STORE/states"); sed -i 1d "$STORE/states"
        [ "$state" = away ] && exit 1
        [ "$state" = deleted ] && exit 0
        echo "is $state" ;;
      *message*) echo "the job failed" ;;
    esac ;;
esac
"""


def follow(tmp_path: Path, states: list[str], *, exists: bool = False) -> tuple[int, str, list[str]]:
    """Run the script of the CronJob's pod with that kubectl; return its exit code, output and kubectl calls."""
    spec = of_kind(read("cronjob.yaml"), "CronJob")["spec"]
    container = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    (tmp_path / "rayjob.yaml").write_text(of_kind(read("cronjob.yaml"), "ConfigMap")["data"]["rayjob.yaml"])
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    if exists:
        (tmp_path / "vectide-1").touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STORE": str(tmp_path), "POLL_S": "0"}
    env |= {"RUN": "vectide-1", "OWNER": "uid-1"}
    script = container["command"][2].replace("/etc/vectide", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (tmp_path / "calls").read_text().splitlines()


def test_the_pod_creates_the_rayjob_once_and_ends_with_it(tmp_path):
    code, _, calls = follow(tmp_path, ["", "Initializing", "away", "Running", "Complete"])
    assert code == 0
    assert [call for call in calls if call.startswith("create")] == ["create -f -"]
    rayjob = yaml.safe_load((tmp_path / "vectide-1").read_text())
    check(rayjob)
    owner = rayjob["metadata"]["ownerReferences"][0]
    assert (rayjob["metadata"]["name"], owner["name"], owner["uid"]) == ("vectide-1", "vectide-1", "uid-1")


@pytest.mark.parametrize(("state", "message"), [("Failed", "the job failed"), ("deleted", "was deleted")])
def test_a_failed_run_is_not_repeated_by_the_job(tmp_path, state, message):
    code, out, _ = follow(tmp_path, ["Running", state])
    assert message in out
    spec = of_kind(read("cronjob.yaml"), "CronJob")["spec"]["jobTemplate"]["spec"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [code]


def test_a_replacement_pod_creates_no_second_rayjob(tmp_path):
    code, _, calls = follow(tmp_path, ["Running", "Complete"], exists=True)
    assert (code, [call for call in calls if call.startswith("create")]) == (0, [])
