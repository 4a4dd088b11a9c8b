"""Checks the structure: imports go one way, no modules import each other in a circle, files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "pipeline", "actors")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 400  # lines

# Imports that a package may not have. Only pipeline/ imports `ray`, so that everything else runs and is tested without it.
FORBIDDEN = {
    "actors": {"pipeline", "jobs", "ray", "tests", "benchmarks"},
    "pipeline": {"jobs", "tests", "benchmarks"},
    "jobs": {"ray", "torch", "transformers", "tests", "benchmarks"},
}

# A folder of `pipeline/` may use those to its left. Some do not exist yet; docs/architecture.md says what they are for.
ORDER = (
    *("job", "ledger", "table", "reuse", "plan", "execute", "scan", "index", "search", "quality", "report", "run"),
    *("curate", "evaluate", "mine", "train", "sync", "cluster"),
)

# A worker that reads, tokenizes or writes never needs torch, and a person who mistyped a job file should not wait for it.
LIGHT = (
    "jobs.cli",
    "pipeline.job.config",
    "pipeline.train.run",
    "actors.encoders",
    "actors.source.formats",
    "actors.text.tokenizer",
    "actors.unit.writer",
)
HEAVY = ("torch", "transformers", "sentence_transformers")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file; several tests walk it."""
    return ast.parse(path.read_bytes())


@cache
def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a file, inside functions too."""
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports."""
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        else:
            assert node.level == 0, f"{name_of(path)} line {node.lineno}: relative import"
            yield str(node.module).partition(".")[0]


def test_there_are_three_packages():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


def test_a_package_imports_only_those_below_it():
    forbidden = {
        name_of(path): found
        for path in MODULES
        if (found := FORBIDDEN[path.relative_to(ROOT).parts[0]].intersection(imported(path)))
    }
    assert forbidden == {}


def test_a_module_has_a_docstring_and_at_most_400_lines():
    assert [name_of(path) for path in MODULES if not ast.get_docstring(tree_of(path))] == []
    lines = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_of(path): path for path in MODULES}


@cache
def modules_imported(path: Path) -> set[str]:
    """The modules of the three packages that a file imports."""
    found: set[str] = set()
    for node in imports_of(path):
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in NAMES else str(node.module) for name in full)
        else:
            found.update(alias.name for alias in node.names)
    return found.intersection(NAMES)


def folder_of(module: str) -> str | None:
    """The folder of `pipeline/` that a module is in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else None


def test_folders_of_the_pipeline_use_only_those_before_them():
    for module, path in NAMES.items():
        folder = folder_of(module)
        if folder is None:
            continue
        assert folder in ORDER, f"{module}: add its folder to ORDER and to docs/architecture.md"
        for other in filter(None, map(folder_of, modules_imported(path))):
            assert ORDER.index(other) <= ORDER.index(folder), f"{module} imports pipeline.{other}, which comes after it"


def test_the_page_of_the_architecture_lists_the_folders_in_their_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("A folder of `pipeline/`")[1].split("A folder `web` of `jobs`")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == ORDER


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Paths that lead from a module back to itself, one for each module on a circle that is found."""
    done: set[str] = set()
    found = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in sorted(imports[module] - {module}):
                visit(other, [*path, module])
            done.add(module)

    for module in imports:
        visit(module, [])
    return found


def test_no_modules_import_each_other_in_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]  # it finds one
    assert circles({module: modules_imported(path) for module, path in NAMES.items()}) == []


@pytest.mark.slow
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


def test_the_command_line_starts_without_the_libraries_of_its_commands():
    """Each of them takes a good part of a second to import, for every command and for `--help`."""
    script = "import sys, jobs.cli; sys.exit(' '.join({'pyarrow', 'numpy', 'deltalake'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_names_of_tests_have_fewer_than_80_characters():
    files = (ROOT / "tests").rglob("test_*.py")
    names = [name for path in files for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)]
    assert len(names) > 1000
    assert [name for name in names if len(name) >= 80] == []


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
