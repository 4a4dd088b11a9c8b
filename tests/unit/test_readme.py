"""What the prose says of the code is so: its job is a job, its links lead somewhere, its commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.cli import app
from pipeline.job.config import parse_job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/cluster.md", "docs/tables.md"]


def test_the_job_of_the_readme_is_a_job():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert parse_job(yaml.safe_load(block)).table.partition_by == ("lang",)


def test_the_job_of_the_demo_is_a_job():
    job = parse_job(yaml.safe_load((ROOT / "docs" / "examples" / "demo.yaml").read_text()))
    assert job.source.text == ("text",)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str):
    named = re.findall(r"`((?:jobs|pipeline|actors|tests|docs|benchmarks)/[\w/.]+)`", (ROOT / page).read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_of_the_readme_are_there_and_none_is_kept_from_it():
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^    vectide (\w+)", README, re.MULTILINE)) == commands


def test_targets_of_make_that_are_named_are_there():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:    |`)make ([a-z0-9-]+)", (ROOT / page).read_text())}
    assert {"demo", "test", "setup", "help"} <= named <= targets


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160
