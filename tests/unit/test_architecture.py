"""The house keeps its shape: imports go one way, files stay small, and nothing heavy is imported in passing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ("jobs", "pipeline", "actors")
MODULES = sorted(path for package in HOUSE for path in (ROOT / package).rglob("*.py"))
LONGEST = 400  # lines

# What a room may not know. `ray` belongs to pipeline/ alone, so that everything else runs and is tested without it.
FORBIDDEN = {
    "actors": {"pipeline", "jobs", "ray", "tests", "benchmarks"},
    "pipeline": {"jobs", "tests", "benchmarks"},
    "jobs": {"ray", "torch", "transformers", "tests", "benchmarks"},
}

# A worker that reads, tokenizes or writes never needs torch, and a person who mistyped a job file should not wait for it.
LIGHT = ("jobs.cli", "pipeline.config", "actors.encoders", "actors.formats", "actors.tokenizer", "actors.writer")
HEAVY = ("torch", "transformers", "sentence_transformers")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} line {node.lineno}: relative import"
            yield str(node.module).partition(".")[0]


def test_the_house_has_its_three_rooms():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(HOUSE)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_code_knows_only_what_stands_below_it(path: Path):
    room = path.relative_to(ROOT).parts[0]
    assert not FORBIDDEN[room].intersection(imported(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_and_stays_small(path: Path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= LONGEST


def test_light_modules_do_not_import_torch():
    script = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY} if module in sys.modules]
    if heavy:
        sys.exit(f"{{name}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Split, so that this file does not find itself.
WORKSHOP = re.compile("|".join(("(?<![A-Za-z0-9_.-])/wo" + "rk/", "/ro" + "ot/", "/opt/py" + "pi", "file:///" + "opt")))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_file_names_the_machine_that_it_was_written_on():
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in tracked()
        if path.is_file()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1)
        if WORKSHOP.search(line)
    ]
    assert found == []
    assert WORKSHOP.search("see /wo" + "rk/main")  # the pattern finds what it is for
