"""A corpus that every machine has: the docstrings of the standard library and of packages that this project installs.

`make demo` embeds it. Source files are parsed, never imported, so that nothing of theirs runs. Which docstrings
are taken depends on the installed versions alone: the same `.venv` gives the same corpus, byte for byte.

    python -m benchmarks.docstrings --out data/demo/corpus
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import itertools
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 5_000
SHARDS = 8
SHORTEST = 40  # characters; below that a docstring says no more than its name

# What is installed with the project and documents itself well. The standard library is taken whole.
PACKAGES = ("aiohttp", "click", "fsspec", "hypothesis", "jinja2", "joblib", "networkx", "numpy", "packaging", "pandas",
            "pydantic", "requests", "rich", "sklearn", "typer", "urllib3", "yarl")  # fmt: skip
NOT_FOR_READERS = {
    "__pycache__",
    "distutils",
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}

SCHEMA = pa.schema([("id", pa.string()), ("module", pa.string()), ("kind", pa.string()), ("text", pa.string())])


class Doc(NamedTuple):
    """One docstring. `id` is `json.decoder:JSONDecoder.decode`, or the module's name for a module's own."""

    id: str
    module: str
    kind: str  # module, class, function or method
    text: str


def sources(root: Path, tops: tuple[str, ...] | None) -> Iterator[tuple[str, Path]]:
    """Module names and files below `root`, public ones only, in order of name; `tops` names the packages, None is all."""
    for path in sorted(root.rglob("*.py")):
        *folders, file = path.relative_to(root).with_suffix("").parts
        parts = [*folders, file] if file != "__init__" else folders
        if not parts or NOT_FOR_READERS.intersection(parts) or any(part.startswith("_") for part in parts):
            continue
        if tops is None or parts[0] in tops:
            yield ".".join(parts), path


def docs(module: str, source: bytes) -> Iterator[Doc]:
    """The docstrings of one source file: its own, then those of its public classes, functions and methods."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file for another Python
        return
    yield from _docs(module, "", tree, "module")


def _docs(module: str, name: str, node: ast.AST, kind: str) -> Iterator[Doc]:
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    if len(text) >= SHORTEST:
        yield Doc(f"{module}:{name}" if name else module, module, kind, text.encode("utf-8", "ignore").decode())
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            below = "class"
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            below = "method" if kind == "class" else "function"
        else:
            continue
        if not child.name.startswith("_"):
            yield from _docs(module, f"{name}.{child.name}".lstrip("."), child, below)


def choose(found: Iterator[Doc], rows: int) -> list[Doc]:
    """`rows` of them, spread: one from every top-level package in turn, until there are enough.

    An id is taken once, and so is a text: an inherited docstring is often copied.
    """
    seen: set[str] = set()
    packages: dict[str, list[Doc]] = {}
    for doc in found:
        if doc.id in seen or doc.text in seen:
            continue
        seen.update((doc.id, doc.text))
        packages.setdefault(doc.module.split(".", 1)[0], []).append(doc)
    for found_there in packages.values():
        found_there.sort(key=lambda doc: hashlib.blake2b(doc.id.encode(), digest_size=8).digest())
    turns = itertools.zip_longest(*(packages[name] for name in sorted(packages)))
    taken = itertools.islice((doc for turn in turns for doc in turn if doc is not None), rows)
    return sorted(taken)


def installed() -> Iterator[Doc]:
    """The docstrings of this Python's standard library and of `PACKAGES`."""
    stdlib, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    for module, path in itertools.chain(sources(stdlib, None), sources(packages, PACKAGES)):
        yield from docs(module, path.read_bytes())


def write(out: Path, corpus: list[Doc]) -> None:
    """Writes the corpus to the folder `out`, whole or not at all."""
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number in range(SHARDS):
        part = corpus[len(corpus) * number // SHARDS : len(corpus) * (number + 1) // SHARDS]
        table = pa.Table.from_pylist([doc._asdict() for doc in part], SCHEMA)
        pq.write_table(table, unfinished / f"docstrings-{number:02d}.parquet", compression="zstd")
    unfinished.rename(out)  # the folder's name means that it is complete


def main(arguments: list[str] | None = None) -> int:
    """The command. A corpus that is there is left alone."""
    parser = argparse.ArgumentParser(description="Builds a corpus of docstrings, as Parquet shards.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--rows", type=int, default=ROWS, help="how many docstrings at most (%(default)s)")
    options = parser.parse_args(arguments)
    if options.out.exists():
        print(f"{options.out} is there already")
    else:
        corpus = choose(installed(), options.rows)
        write(options.out, corpus)
        print(f"{options.out}: {len(corpus):,} docstrings in {SHARDS} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
