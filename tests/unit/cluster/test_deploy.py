"""Manifests are what Kubernetes and KubeRay take, ours in deploy/ and those that `vectide schedule` prints."""

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
    """By the schema of its kind; pod templates by Kubernetes' own, wherever they are."""
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
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml", "cronjob.yaml"])
def test_what_is_in_deploy_is_valid(name):
    documents = read(name)
    for document in documents:
        check(document)
    assert documents


def test_what_is_in_deploy_is_what_schedule_prints(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vectide").touch()
    (tmp_path / "job.yaml").write_text((DEPLOY / "job.yaml").read_text())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    found = {
        "cronjob.yaml": printed("job.yaml", "--cron", CRON, "--target", "kubernetes"),
        "crontab": printed("job.yaml", "--cron", CRON, "--target", "crontab"),
        "rayjob.yaml": (resources.files(schedule) / "templates" / "rayjob.yaml").read_text(),
    }
    service, timer = printed("job.yaml", "--on-calendar", "*-*-* 03:00:00", "--target", "systemd").split("\n\n# ")
    found |= {"vectide.service": f"{service}\n", "vectide.timer": f"# {timer}"}
    for name, text in found.items():
        assert text.replace(str(tmp_path), "/srv/vectide") == (DEPLOY / name).read_text()


def test_a_wheel_has_the_templates():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "templates/*" in project["tool"]["setuptools"]["package-data"]["*"]
    found = {template.name for template in (resources.files(schedule) / "templates").iterdir()}
    assert found == {"cronjob.yaml", "crontab", "rayjob.yaml", "vectide.service", "vectide.timer"}


def test_a_rayjob_of_the_user_keeps_what_it_has(tmp_path):
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
    for printed_one in documents:
        check(printed_one)
        assert printed_one["metadata"]["namespace"] == "123"
    made = yaml.safe_load(of_kind(documents, "ConfigMap")["data"]["rayjob.yaml"])
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert [volume["name"] for volume in head["volumes"]] == ["scratch", "vectide-job"]
    assert [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]] == ["/etc/vectide"]
    assert made["spec"]["entrypoint"] == "vectide backfill /etc/vectide/job.yaml"


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
    here: Any = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
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
    made = yaml.safe_load(data["rayjob.yaml"])
    check({**made, "metadata": {**made["metadata"], "name": "run-1"}})
    assert made["metadata"]["ownerReferences"][0]["kind"] == "Job"
    assert made["spec"]["entrypoint"] == "vectide refresh /etc/vectide/job.yaml"


def test_the_job_that_a_pod_gets_is_the_job(tmp_path):
    job = load_job(str(DEPLOY / "job.yaml"))
    (tmp_path / "job.yaml").write_text(render.job_text(job))
    assert load_job(str(tmp_path / "job.yaml")) == job


def test_heads_do_no_work_and_gpu_workers_are_spot():
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


def test_deploy_and_constraints_name_one_ray():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"FROM rayproject/ray:{pinned.group(1)}-py311-gpu" in (DEPLOY / "Dockerfile").read_text()
    for name in ("rayjob.yaml", "raycluster.yaml"):
        (document,) = read(name)
        assert document["spec"].get("rayClusterSpec", document["spec"])["rayVersion"] == pinned.group(1)


def test_the_replicas_of_the_job_are_the_gpus_of_its_cluster():
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
def test_a_place_that_means_nothing_in_a_pod_is_refused(setting, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message) as refused:
        render.job_text(load_job(str(DEPLOY / "job.yaml"), settings=[setting]))
    assert "secret" not in str(refused.value)


NO_RAYJOB = ["", "kind: RayCluster", "kind: RayJob\nspec: {clusterSelector: {a: b}}", "[", "- 1"]
NO_HEAD = "kind: RayJob\nspec: {rayClusterSpec: {headGroupSpec: {template: {spec: {containers: []}}}}}"
NO_NAMESPACE = (DEPLOY / "rayjob.yaml").read_text().replace("namespace: default", "namespace: 'a\", b: \"c'")


@pytest.mark.parametrize("text", [*NO_RAYJOB, NO_HEAD, NO_NAMESPACE])
def test_what_is_no_rayjob_is_refused(text, tmp_path):
    (tmp_path / "rayjob.yaml").write_text(text)
    job = load_job(str(DEPLOY / "job.yaml"))
    with pytest.raises(ConfigError, match="rayjob.yaml"):
        render.kubernetes(job, CRON, tmp_path / "rayjob.yaml", name="n", command="refresh")
    with pytest.raises(ConfigError, match="--rayjob"):
        render.kubernetes(job, CRON, tmp_path / "nowhere.yaml", name="n", command="refresh")


def test_a_name_is_short_enough_and_says_which_table():
    job = load_job(str(DEPLOY / "job.yaml"))
    other = load_job(str(DEPLOY / "job.yaml"), settings=["table.uri=s3://lake/other"])
    names = {render.schedule_name(job, stem) for stem in ("Wiki EN", "x" * 99, "___", "日本")}
    names.add(render.schedule_name(other, "Wiki EN"))
    assert len(names) == 4
    assert all(re.fullmatch(r"vectide-[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    assert max(map(len, names)) <= render.LONGEST_NAME


KUBECTL = """#!/bin/sh
# A cluster: a file for each RayJob, and the states that it goes through.
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


def follow(tmp_path: Path, states: list[str], *, there: bool = False) -> tuple[int, str, list[str]]:
    """The script of the CronJob's pod against that cluster: exit code, what it said, what it asked kubectl."""
    spec = of_kind(read("cronjob.yaml"), "CronJob")["spec"]
    container = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    (tmp_path / "rayjob.yaml").write_text(of_kind(read("cronjob.yaml"), "ConfigMap")["data"]["rayjob.yaml"])
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    if there:
        (tmp_path / "vectide-1").touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STORE": str(tmp_path), "POLL_S": "0"}
    env |= {"RUN": "vectide-1", "OWNER": "uid-1"}
    script = container["command"][2].replace("/etc/vectide", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (tmp_path / "calls").read_text().splitlines()


def test_the_pod_makes_the_rayjob_once_and_ends_with_it(tmp_path):
    code, _, calls = follow(tmp_path, ["", "Initializing", "away", "Running", "Complete"])
    assert code == 0
    assert [call for call in calls if call.startswith("create")] == ["create -f -"]
    made = yaml.safe_load((tmp_path / "vectide-1").read_text())
    check(made)
    owner = made["metadata"]["ownerReferences"][0]
    assert (made["metadata"]["name"], owner["name"], owner["uid"]) == ("vectide-1", "vectide-1", "uid-1")


@pytest.mark.parametrize(("state", "said"), [("Failed", "the job failed"), ("deleted", "was deleted")])
def test_a_run_that_failed_is_not_repeated_by_the_job(tmp_path, state, said):
    code, out, _ = follow(tmp_path, ["Running", state])
    assert said in out
    spec = of_kind(read("cronjob.yaml"), "CronJob")["spec"]["jobTemplate"]["spec"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [code]


def test_a_pod_that_takes_over_makes_no_second_rayjob(tmp_path):
    code, _, calls = follow(tmp_path, ["Running", "Complete"], there=True)
    assert (code, [call for call in calls if call.startswith("create")]) == (0, [])
