"""The prose matches the code: example jobs are valid, links resolve, and named files and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.cli import app
from pipeline.job.config import parse_job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
MAX_COLUMNS = 120


def test_the_jobs_of_the_readme_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    jobs = [parse_job(yaml.safe_load(block)) for block in blocks]
    assert [job.table.partition_by for job in jobs] == [("lang",)]


def test_the_job_of_the_demo_is_valid():
    job = parse_job(yaml.safe_load((ROOT / "docs" / "examples" / "demo.yaml").read_text()))
    assert job.source.text == ("text",)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_resolve(page: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str):
    named = re.findall(r"`((?:jobs|pipeline|actors|tests|docs|benchmarks)/[\w/.]+)`", (ROOT / page).read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_names_every_command_and_no_other():
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^    vectide (\w+)", README, re.MULTILINE)) == commands


def test_named_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:    |`)make ([a-z0-9-]+)", (ROOT / page).read_text())}
    assert {"demo", "test", "setup", "help"} <= named <= targets


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_are_at_most_120_characters(page: str):
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > MAX_COLUMNS and not line.startswith("|")] == []
