"""Checks of cluster.yaml: it is valid for `ray up`, and does what its comments say."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return the cluster schema of the installed Ray, read without importing Ray."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations is not None
    loaded: dict[str, Any] = json.loads(
        Path(ray.submodule_search_locations[0], "autoscaler", "ray-schema.json").read_text()
    )
    return loaded


def test_cluster_file_is_valid_by_rays_own_schema(cluster, schema):
    jsonschema.validate(cluster, schema)


@pytest.mark.parametrize("key", ["max_worker", "head_node"])
def test_an_unknown_key_is_found(cluster, schema, key):
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({**cluster, key: 1}, schema)


def test_the_head_is_on_demand_and_runs_no_tasks(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_instances(cluster):
    gpu = cluster["available_node_types"]["gpu_worker"]
    assert 0 < gpu["min_workers"] <= gpu["max_workers"] <= cluster["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_machine_has_a_role_and_no_access_key(cluster):
    for node_type in cluster["available_node_types"].values():
        assert node_type["node_config"]["IamInstanceProfile"]["Name"]
    assert not re.search(r"AKIA|aws_secret|ssh_private_key|KeyName", (ROOT / "cluster.yaml").read_text())


def test_image_and_constraints_name_one_version_of_ray(cluster):
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["docker"]["image"] == f"rayproject/ray:{pinned.group(1)}-py311-gpu"


def test_files_that_the_setup_reads_are_synced_to_the_machines(cluster):
    (mounted,) = cluster["file_mounts"].items()
    assert mounted == ("/home/ray/vectide", ".")
    for command in cluster["setup_commands"] + cluster["head_setup_commands"]:
        assert "constraints.txt" in command
    assert not {"constraints.txt", "pyproject.toml", "README.md", "LICENSE"}.intersection(cluster["rsync_exclude"])
