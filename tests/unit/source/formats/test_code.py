"""Source code: every line is in one row, a row is a function, and what is no source code is left out or quarantined."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import ConfigError
from actors.schema import Unit
from actors.source import code_parts
from actors.source.code_parts import cut, language_of, need_grammars
from actors.source.formats import FORMATS, open_format
from actors.source.read_unit import check_source, read_unit
from pipeline.job.config import parse_job
from pipeline.plan.corpus import list_corpus

PYTHON = '''"""Module."""
import os  # trailing

# Above.
@decorated
def first():
    """Docs."""
    def inner(): pass


class A(Base):
    # of f
    def f(self): ...

    x = 1

class OnlyFields:
    y: int

if True:
    def g(): return 1; x = 2
'''
SAMPLES = {
    "a.py": (
        PYTHON,
        [(1, 2, None), (4, 8, "first"), (11, 13, "A.f"), (15, 15, "A"), (17, 18, "OnlyFields"), (20, 21, "g")],
    ),
    "a.js": (
        (
            "import x from 'y';\n/** Docs. */\nexport const add = (a) => {\n  return a;\n};\nclass B {\n  run() { }\n}\n"
            "function a(){} function b(){}\nx.y = function () {\n};\n"
        ),
        [(1, 1, None), (2, 5, "add"), (6, 8, "B.run"), (9, 9, "a"), (10, 11, "x.y")],
    ),
    "a.tsx": (
        "export interface Foo {\n  a: string;\n}\n@C({\n})\nclass Bar {\n  x: string;\n  // Gets.\n  async get<T>(): T {\n  }\n}\n",
        [(1, 3, "Foo"), (4, 7, "Bar"), (8, 11, "Bar.get")],
    ),
    "a.go": (
        "package b\n\n// Server serves.\ntype Server struct {\n\tx int\n}\n\nfunc (s *Server) Run() error {\n}\n",
        [(1, 1, None), (3, 6, "Server"), (8, 9, "Server.Run")],
    ),
    "a.rs": (
        "use a;\nimpl Point {\n    /// Makes it.\n    #[inline]\n    fn new() -> Self {\n    }\n}\n",
        [(1, 1, None), (2, 7, "Point.new")],
    ),
    "A.java": (
        "package x;\n/** A class. */\nclass D<T> {\n    int a;\n    @Override\n    public String toString() {\n    }\n}\n",
        [(1, 1, None), (2, 4, "D"), (5, 8, "D.toString")],
    ),
    "a.h": (
        "#ifdef X\nstatic char *\nname(int a)\n{\n}\n#endif\ntypedef struct {\n\tint a;\n} foo_t;\n",
        [(1, 6, "name"), (7, 9, "foo_t")],
    ),
    "a.cpp": (
        "namespace foo {\n// Adds.\ntemplate <typename T>\nT &add(T a) {\n}\nint A::b() {\n}\n}  // namespace foo\n",
        [(1, 5, "foo.add"), (6, 8, "foo.A::b")],
    ),
    "a.rb": (
        "# A.\nclass Bar\n  attr_reader :x\n\n  # Runs.\n  def run(a)\n  end\nend\n",
        [(1, 3, "Bar"), (5, 8, "Bar.run")],
    ),
}


def check_lines(path: str, data: bytes) -> None:
    lines, last = data.split(b"\n"), 0
    covered: set[int] = set()
    for part in cut(path, data):
        assert last < part.line <= part.end_line <= len(lines)
        assert part.doc is None or part.line <= part.doc[0] <= part.doc[1] <= part.end_line
        covered.update(range(part.line, part.end_line + 1))
        last = part.end_line
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= covered


@pytest.mark.parametrize("name", SAMPLES)
def test_functions_and_what_is_between_them_are_parts(name):
    source, expected = SAMPLES[name]
    parts = cut(name, source.encode())
    assert [(part.line, part.end_line, part.name) for part in parts] == expected
    check_lines(name, source.encode())


@given(
    name=st.sampled_from([*SAMPLES]), start=st.integers(0, 200), stop=st.integers(0, 400), junk=st.binary(max_size=9)
)
@settings(max_examples=60)
def test_every_line_with_text_is_in_one_part_of_broken_code_too(name, start, stop, junk):
    data = SAMPLES[name][0].encode()
    check_lines(name, data[start:stop] + junk + data[stop:])


def test_a_part_knows_where_its_documentation_is():
    docs = {part.name: part.doc for name in ("a.py", "a.js") for part in cut(name, SAMPLES[name][0].encode())}
    assert docs["first"] == (7, 7)
    assert docs["A.f"] == (12, 12)
    assert docs["add"] == (2, 2)
    assert docs["g"] is None


def test_code_nested_deeper_than_python_can_call_is_cut():
    check_lines("a.js", b"x = " + b"[" * 5000 + b"]" * 5000 + b"\nfunction f() {}\n")


def test_a_header_is_of_c_unless_it_has_classes():
    assert language_of("a.h", b"int f(void);") == "c"
    assert language_of("a.h", b"class A {\n};") == "cpp"


def read(shards):
    root = shards[0].path.rsplit("/", 2)[0]
    source = check_source(shards, root=root, format="code", keep=("name", "line", "end_line", "language", "path"))
    pieces = [piece for shard in shards for piece in FORMATS["code"].pieces(shard, 9)]
    result = read_unit(Unit(0, tuple(pieces)), source)
    assert result.rows_read == result.table.num_rows + len(result.bad)
    return result


def test_a_row_is_a_function_with_its_place(put):
    shard = put("a.go", b"\xef\xbb\xbfpackage a\r\n\r\n// Runs.\r\nfunc Run() {\r\n}\r\n")
    rows = read([shard]).table.to_pylist()
    assert [(row["id"].split("/")[1], row["_content"]) for row in rows] == [
        ("a.go:1", "package a"),
        ("a.go:3", "// Runs.\r\nfunc Run() {\r\n}"),
    ]
    assert {key: rows[1][key] for key in ("name", "line", "end_line", "language", "path")} == {
        "name": "Run",
        "line": 3,
        "end_line": 5,
        "language": "go",
        "path": shard.path,
    }


def test_an_edit_changes_the_hash_of_the_edited_function_only(put):
    hashes = [
        {row["name"]: row["_hash"] for row in read([put("a.py", text.encode())]).table.to_pylist()}
        for text in (PYTHON, PYTHON.replace("import os", "\n\nimport os").replace("return 1", "return 2"))
    ]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {None, "g"}


def test_files_that_are_no_written_code_are_quarantined(put):
    files = {
        "wide.py": (b"\xff\xfex\0", "invalid_utf8"),
        "latin.c": (b"// caf\xe9", "invalid_utf8"),
        "pb.go": (b"// Code generated by protoc-gen-go. DO NOT EDIT.\npackage a", "generated_code"),
        "packed.js": (b"var a=1;" * 1000, "generated_code"),
        "large.c": (b" " * (16 << 20) + b"x", "too_large"),
    }
    bad = read([put("ok.py", b"x = 1"), *(put(name, data) for name, (data, _) in files.items())]).bad
    assert [(row.shard.rsplit("/", 1)[1], row.reason) for row in bad] == [(name, files[name][1]) for name in files]


@pytest.mark.parametrize("data", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_has_no_row(put, data):
    result = read([put("ok.py", b"x = 1"), put("__init__.py", data)])
    assert (result.table.num_rows, result.bad) == (1, [])
    if data:
        assert read([put("alone.py", data)]).rows_read == 0


def listed(folder, pattern=""):
    job = {"source": {"uri": f"{folder}{pattern}", "format": "code"}, "table": {"uri": "/nowhere"}}
    found = list_corpus(parse_job({**job, "encoder": {"model": "any"}}))
    names = [shard.path.removeprefix(f"{folder}/") for shard in found.shards]
    return names, {each.reason: each.count for each in found.left_out}


def test_other_files_of_a_checkout_are_left_out_with_a_reason(tmp_path):
    for name in (
        ".git/hooks/x.py",
        "README.md",
        "_a/__init__.py",
        "a.min.js",
        "node_modules/x/i.js",
        "env/site-packages/x.py",
        "dist-packages/x.py",
        "packages/x.py",
        "b_pb2.py",
        "b.PY",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    everything = {"dot_name": 1, "not_code": 1, "foreign_code": 3, "generated_name": 2}
    assert listed(tmp_path) == (["_a/__init__.py", "b.PY", "packages/x.py"], everything)
    assert listed(tmp_path, "/node_modules/*/*")[0] == ["node_modules/x/i.js"]
    assert listed(tmp_path, "/node_modules")[0] == ["node_modules/x/i.js"]
    with pytest.raises(ConfigError, match="1 \\(no source code in a language that is known\\), first '.*README.md'"):
        listed(tmp_path, "/*.md")


def test_auto_takes_no_code_and_names_the_format():
    with pytest.raises(ConfigError, match="code: source code"):
        open_format("auto", "/src/a.py")


def test_a_missing_grammar_is_named_with_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_go", None)
    code_parts._load.cache_clear()
    with pytest.raises(ConfigError, match=r"tree_sitter_go.*pip install 'vectide\[code\]'"):
        need_grammars()
