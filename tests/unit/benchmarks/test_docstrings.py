"""The demo's corpus: which docstrings it takes, under which names, and that it is the same every time."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from benchmarks import docstrings

SOURCE = b'''"""A module that explains itself at a length that is enough."""
class Shape:
    """A shape, described in more than forty characters, for certain."""
    def area(self):
        """Return the area of this shape, in units of the plane, squared."""
        def inner():
            """A function in a function is nobody's business, so not taken."""
    def _hidden(self):
        """A private method, whose docstring is for its authors alone."""
async def fetch():
    """Fetch the thing over there and bring it here, without waiting."""
def short():
    """Too short."""
'''


def test_docstrings_of_a_module_its_classes_functions_and_methods_are_found():
    found = list(docstrings.docs("geo.shapes", SOURCE))
    assert [(doc.id, doc.kind) for doc in found] == [
        ("geo.shapes", "module"),
        ("geo.shapes:Shape", "class"),
        ("geo.shapes:Shape.area", "method"),
        ("geo.shapes:fetch", "function"),
    ]
    assert found[2].text == "Return the area of this shape, in units of the plane, squared."
    assert {doc.module for doc in found} == {"geo.shapes"}


@pytest.mark.parametrize(
    "source", [b"def broken(:\n", b"\0", b"\xff\xfe\xfa", "x = '\udcff'".encode("utf-8", "surrogatepass")]
)
def test_a_file_that_is_not_python_gives_nothing(source: bytes):
    assert list(docstrings.docs("broken", source)) == []


def test_private_modules_tests_and_other_packages_are_left_out(tmp_path: Path):
    for name in ("a/__init__.py", "a/b.py", "a/_c.py", "a/tests/d.py", "e.py", "site-packages/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [module for module, _ in docstrings.sources(tmp_path, None)] == ["a", "a.b", "e"]
    assert [module for module, _ in docstrings.sources(tmp_path, ("e",))] == ["e"]


def test_the_selection_takes_from_each_package_in_turn_without_repeats():
    def doc(name: str, text: str) -> docstrings.Doc:
        return docstrings.Doc(name, name.partition(":")[0], "function", text)

    big = [doc(f"big:f{number}", f"text {number}") for number in range(100)]
    small = [doc("small:f", "a text"), doc("small:f", "the same id again"), doc("small:g", "a text")]
    chosen = docstrings.choose(iter([*big, *small]), 5)
    assert chosen == docstrings.choose(iter([*big, *small]), 5)
    assert [row.id for row in chosen if row.module == "small"] == ["small:f"]
    assert len({row.id for row in chosen}) == 5


def test_a_corpus_is_written_in_shards_with_every_row_once(tmp_path: Path):
    corpus = sorted(docstrings.docs("geo.shapes", SOURCE))
    (tmp_path / "corpus.unfinished").mkdir()  # what a run that was killed leaves
    docstrings.write(tmp_path / "corpus", corpus)
    assert len(list((tmp_path / "corpus").glob("*.parquet"))) == docstrings.SHARDS
    rows = ds.dataset(tmp_path / "corpus", schema=docstrings.SCHEMA).to_table().to_pylist()
    assert rows == [doc._asdict() for doc in corpus]
    assert not (tmp_path / "corpus.unfinished").exists()


def test_an_existing_corpus_is_not_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "corpus").mkdir()
    assert docstrings.main(["--out", str(tmp_path / "corpus")]) == 0
    assert "is there already" in capsys.readouterr().out
    assert list((tmp_path / "corpus").iterdir()) == []
