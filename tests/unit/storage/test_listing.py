"""Listings: every name that a source URL matches is read, or left out with a reason and a count."""

from __future__ import annotations

import errno
import os
import re
import stat

import fsspec
import pytest
from fsspec.utils import glob_translate
from hypothesis import given
from hypothesis import strategies as st

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.source.spec import corpus_root
from actors.storage import disk
from actors.storage.own_table import is_inside
from actors.storage.patterns import Pattern
from pipeline.job.config import parse_job
from pipeline.plan.corpus import list_corpus


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def listed(folder, pattern, *, text=False):
    """Names of what is read, and of what is left out: a reason, how many, the first."""
    found = storage.glob(f"{folder}/{pattern}", lambda _: text)
    start = f"{folder}/"
    left = {each.reason: (each.count, each.first.removeprefix(start)) for each in found.left_out}
    return [shard.path.removeprefix(start) for shard in found.shards], left


def corpus(uri, source_format="auto"):
    document = {"uri": str(uri), "format": source_format}
    return list_corpus(parse_job({"source": document, "table": {"uri": "/nowhere/table"}, "encoder": {"model": "any"}}))


# --------------------------------------------------------------------------------------------------------------- names


SITE = ("site/_posts/a.md", "site/guide/_index.md", "site/guide/page.md", "site/.git/x.md", "site/.draft.md")


def test_names_that_begin_with_an_underscore_are_counted(tmp_path):
    make(tmp_path, *SITE)
    hidden = {"dot_name": (2, "site/.draft.md"), "underscore_name": (2, "site/_posts/a.md")}
    assert listed(tmp_path, "site/**/*.md") == (["site/guide/page.md"], hidden)
    assert listed(tmp_path, "site") == (["site/guide/page.md"], hidden)


def test_in_a_source_of_text_only_a_dot_hides(tmp_path):
    make(tmp_path, *SITE, "site/_temporary/0/part.md", "site/_SUCCESS")
    names = ["site/_posts/a.md", "site/guide/_index.md", "site/guide/page.md"]
    left = {"dot_name": (2, "site/.draft.md"), "underscore_name": (1, "site/_temporary/0/part.md")}
    assert listed(tmp_path, "site/**/*.md", text=True) == (names, left)
    assert listed(tmp_path, "site", text=True) == (names, left)


@pytest.mark.parametrize(
    ("names", "source_format", "read"),
    [
        (("a.md", "_b.txt", "_config.yml"), "auto", ["_b.txt", "a.md"]),
        (("_a.md",), "auto", ["_a.md"]),
        (("a.jsonl", "_notes.md"), "auto", ["a.jsonl"]),
        (("a.html", "_b.html"), "text", ["_b.html", "a.html"]),
        (("a.html", "_b.html"), "jsonl", ["a.html"]),
        (("_DSC01.JPG", "_b.txt", "a.pdf"), "auto", ["_DSC01.JPG", "_b.txt", "a.pdf"]),
        (("_DSC01.JPG", "a.parquet"), "auto", ["a.parquet"]),
        (("_b.heic", "a.heic"), "pages", ["_b.heic", "a.heic"]),
    ],
)
def test_a_source_is_of_documents_by_its_format_or_by_all_its_endings(tmp_path, names, source_format, read):
    make(tmp_path, *names)
    found = corpus(tmp_path, source_format)
    assert [shard.path.rsplit("/", 1)[1] for shard in found.shards] == read
    assert sum(each.count for each in found.left_out) == len(names) - len(read)


def test_a_name_that_is_not_utf8_is_refused_with_the_fix(tmp_path):
    make(tmp_path, "a.md")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).touch()
    with pytest.raises(ConfigError, match=r"caf\\udce9.md' has bytes that are not UTF-8.*rename the file"):
        corpus(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("_x/*.csv", ["_x/_b.csv", "_x/a.csv"]),
        ("_x/[_a]*.csv", ["_x/_b.csv", "_x/a.csv"]),
        ("_*/a.csv", ["_x/a.csv"]),
        ("**/_x/a.csv", ["_x/a.csv"]),
        (".y/*.csv", [".y/a.csv"]),
        ("?x/*.csv", []),
        ("[!.]x/*.csv", []),
        ("_x/_b.csv", ["_x/_b.csv"]),
    ],
)
def test_a_pattern_may_spell_what_is_hidden(tmp_path, pattern, read):
    make(tmp_path, "_x/a.csv", "_x/_b.csv", ".y/a.csv")
    names, left = listed(tmp_path, pattern)
    if pattern == "_x/*.csv":
        assert (names, left) == (["_x/a.csv"], {"underscore_name": (1, "_x/_b.csv")})
    else:
        assert names == read


def test_folders_above_the_pattern_hide_nothing(tmp_path):
    for above in ("_lake/.v1", "_a*b"):
        make(tmp_path, f"{above}/x1.csv", f"{above}/sub/x2.csv")
        for pattern in ("*.csv", "x?.csv", "x[1].csv"):
            assert listed(tmp_path, f"{above}/{pattern}")[0] == [f"{above}/x1.csv"]
        assert listed(tmp_path, above)[0] == [f"{above}/sub/x2.csv", f"{above}/x1.csv"]


def test_metadata_files_of_other_tools_are_no_documents(tmp_path):
    notes = ("_SUCCESS", "_metadata", "_common_metadata", ".a.parquet.crc", "a.crc", "_committed_1", "_started_1")
    make(tmp_path, "d/a.parquet", *(f"d/{name}" for name in notes))
    for pattern in ("d", "d/*", "d/**"):
        for text in (False, True):
            assert listed(tmp_path, pattern, text=text) == (["d/a.parquet"], {})
    assert listed(tmp_path, "d/_metadata") == (["d/_metadata"], {})
    assert listed(tmp_path, "d/*.crc")[0] == ["d/a.crc"]


def test_a_document_named_as_if_by_databricks_is_read_or_counted(tmp_path):
    make(tmp_path, "d/a.md", "d/_started_late.md", "d/_committed_to_it.md", "d/_started_12", "d/_committed_vacuum12")
    assert listed(tmp_path, "d/*.md", text=True)[0] == ["d/_committed_to_it.md", "d/_started_late.md", "d/a.md"]
    assert listed(tmp_path, "d")[1] == {"underscore_name": (2, "d/_committed_to_it.md")}


def test_a_name_that_is_no_text_is_refused_or_shown_escaped(tmp_path):
    with open(os.fsencode(tmp_path) + b"/._\xff.md", "w", encoding="utf-8"):
        (left,) = storage.glob(str(tmp_path)).left_out
    assert left.first == f"{tmp_path}/._\\udcff.md"


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_that_matches_is_read_as_a_folder(tmp_path):
    make(tmp_path, "d/one.parquet", "d/part.parquet/a.parquet", "d/part.parquet/lang=de/b", "d/other/c.parquet")
    (tmp_path / "d/none.parquet").mkdir()
    names = ["d/one.parquet", "d/part.parquet/a.parquet", "d/part.parquet/lang=de/b"]
    assert listed(tmp_path, "d/*.parquet") == (names, {"empty_folder": (1, "d/none.parquet")})
    assert listed(tmp_path, "d/*.parquet/") == (names[1:], {"empty_folder": (1, "d/none.parquet")})
    assert listed(tmp_path, "d/**/*.parquet")[0] == ["d/one.parquet", "d/other/c.parquet", *names[1:]]


@pytest.mark.slow
def test_a_tree_may_be_deeper_than_the_stack(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1_010):
            os.mkdir("d")
            os.chdir("d")
        with open("a.txt", "w", encoding="utf-8"):
            pass
    finally:
        os.chdir(here)
    (shard,) = storage.glob(str(tmp_path)).shards
    assert shard.path.endswith("/d/a.txt")
    folder = str(tmp_path)
    for depth in range(1_010, 0, -1):  # pytest's own clean-up is recursive
        place = f"{folder}{'/d' * depth}"
        if depth == 1_010:
            os.remove(f"{place}/a.txt")
        os.rmdir(place)


# --------------------------------------------------------------------------------------------------------------- links


def test_a_link_is_followed_and_a_dangling_one_counted(tmp_path):
    make(tmp_path, "far/x.txt", "far/sub/y.txt", "d/a.txt")
    for name, target in {
        "out.txt": "../far/x.txt",
        "in": "../far/sub",
        "gone.txt": "nowhere",
        "self.txt": "self.txt",
        "up": "..",
        "in_file.txt": "a.txt/b",
    }.items():
        os.symlink(target, tmp_path / "d" / name)
    names, left = listed(tmp_path, "d")
    assert names == ["d/a.txt", "d/in/y.txt", "d/out.txt"]
    assert left == {"dangling_link": (2, "d/gone.txt"), "link_loop": (2, "d/self.txt")}
    names, left = listed(tmp_path, "d/*.txt")
    assert names == ["d/a.txt", "d/out.txt"]
    assert left == {"dangling_link": (2, "d/gone.txt"), "link_loop": (1, "d/self.txt")}


def test_a_file_is_read_under_its_own_name_once(tmp_path):
    make(tmp_path, "d/2024/a.csv", "far/b.csv")
    for name, target in {"latest": "2024", "z.csv": "2024/a.csv", "one": "../far", "two": "../far"}.items():
        os.symlink(target, tmp_path / "d" / name)
    names, left = listed(tmp_path, "d")
    assert names == ["d/2024/a.csv", "d/one/b.csv", "d/two/b.csv"]
    assert left == {"repeated": (2, "d/latest/a.csv")}
    assert listed(tmp_path, "d/l*/*.csv") == (["d/latest/a.csv"], {})
    assert listed(tmp_path, "d/latest") == (["d/latest/a.csv"], {})


def test_links_between_folders_end(tmp_path):
    """Every folder links to every other: each link is followed once, or there would be more paths than atoms."""
    names = [f"f{number:02d}" for number in range(12)]
    make(tmp_path, *(f"d/{name}/{name}.txt" for name in names))
    for name in names:
        for other in names:
            os.symlink(f"../{other}", tmp_path / "d" / name / f"to_{other}")
    read, left = listed(tmp_path, "d")
    assert read == [f"d/{name}/{name}.txt" for name in names]
    assert set(left) == {"link_loop", "repeated"}


def test_a_link_to_a_missing_mount_is_counted_as_dangling(tmp_path):
    make(tmp_path, "d/2023/a.csv")
    os.symlink("/no/such/mount", tmp_path / "d" / "2024")
    for pattern in ("d/*/*.csv", "d/**/*.csv", "d"):
        assert listed(tmp_path, pattern) == (["d/2023/a.csv"], {"dangling_link": (1, "d/2024")})


def test_pipes_and_sockets_are_never_opened(tmp_path):
    make(tmp_path, "d/a.txt")
    os.mkfifo(tmp_path / "d/pipe.txt")
    os.mknod(tmp_path / "d/socket.txt", stat.S_IFSOCK | 0o600)
    os.symlink("/dev/null", tmp_path / "d/device.txt")
    for pattern in ("d/*.txt", "d"):
        assert listed(tmp_path, pattern) == (["d/a.txt"], {"not_a_file": (3, "d/device.txt")})
    with pytest.raises(ConfigError, match=r"no file that is read .* 1 \(a pipe, a socket or a device\), first '.*pipe"):
        corpus(tmp_path / "d/pipe.txt")


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_path_without_permission_is_an_error_that_names_it(tmp_path, monkeypatch):
    make(tmp_path, "d/a/x.txt", "d/.b/y.txt")
    os.symlink("/far/z.txt", tmp_path / "d/a/z.txt")
    real_stat, real_scan = os.stat, os.scandir

    def look(path, **named):
        if str(path).endswith("z.txt"):
            raise PermissionError(errno.EACCES, "not yours", path)
        return real_stat(path, **named)

    def scandir(path):
        if path.endswith("/.b"):
            raise PermissionError(errno.EACCES, "not yours", path)
        return real_scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", look)
        with pytest.raises(StorageError, match="cannot look at '.*/d/a/z.txt': access denied"):
            listed(tmp_path, "d")
    os.remove(tmp_path / "d/a/z.txt")
    assert listed(tmp_path, "d") == (["d/a/x.txt"], {"dot_name": (1, "d/.b")})  # nothing of it would be read


def test_a_file_removed_during_listing_is_counted(tmp_path, monkeypatch):
    make(tmp_path, "d/a.txt", "d/b.txt")
    real = disk._entries

    def entries(path):
        found = real(path)
        (tmp_path / "d/b.txt").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(disk, "_entries", entries)
    assert listed(tmp_path, "d") == (["d/a.txt"], {"vanished": (1, "d/b.txt")})


@pytest.mark.parametrize("uri", ["d/{a,b}.txt", "d/a.txt,d/b.txt"])
def test_braces_and_lists_are_no_patterns(tmp_path, uri):
    make(tmp_path, "d/a.txt", "d/b.txt")
    with pytest.raises(ConfigError, match="lists with commas are no patterns here, but"):
        corpus(tmp_path / uri)
    make(tmp_path, uri)
    assert len(corpus(tmp_path / uri).shards) == 1


def test_stars_within_a_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 'a\\*\\*b' in it: \\*\\* stands for folders"):
        corpus(tmp_path / "a**b")


# -------------------------------------------------------------------------------------------- a path that exists is one


@pytest.mark.parametrize("name", ["a[1].jsonl", "what?.csv", "*.md", "**", "x[", "f[ab]", "~$x.txt", "a{b}"])
def test_a_path_that_exists_is_that_path(tmp_path, name):
    make(tmp_path, f"d/{name}", f"d/sub{name}/x.txt", "d/a1.jsonl", "d/whatx.csv")
    found = storage.glob(f"{tmp_path}/d/{name}")
    assert [shard.path for shard in found.shards] == [f"{tmp_path}/d/{name}"]
    assert corpus_root(f"{tmp_path}/d/{name}", found.shards) == f"{tmp_path}/d"
    others = storage.glob(f"{tmp_path}/d/sub{name}/*.txt").shards
    assert [shard.path for shard in others] == [f"{tmp_path}/d/sub{name}/x.txt"]
    assert corpus_root(f"{tmp_path}/d/sub{name}/*.txt", others) == f"{tmp_path}/d/sub{name}"
    assert corpus_root(f"{tmp_path}/d/sub{name}", others) == f"{tmp_path}/d/sub{name}"


def test_what_a_name_would_match_as_a_pattern_is_counted(tmp_path):
    make(tmp_path, "*.md", "a.md", "b.md")
    assert listed(tmp_path, "*.md") == (["*.md"], {"literal_path": (2, "a.md")})


# -------------------------------------------------------------------------------------------------------------- stores


@pytest.fixture
def memory(request):
    place = f"memory://listings-{request.node.name}"
    fs = fsspec.filesystem("memory")
    yield lambda *names: [fs.pipe_file(f"{place}/{name}", b"x") for name in names] and place.replace("://", ":///")
    fs.rm(place, recursive=True)


def test_a_store_is_listed_by_the_same_rules(memory):
    place = memory(
        "_v/one.csv", "_v/p.csv/a", "_v/p.csv/_SUCCESS", "_v/_x.csv", "_v/q.csv/.b", "_v/a[1].csv", "_v/a1.csv"
    )
    names = ["_v/a1.csv", "_v/a[1].csv", "_v/one.csv", "_v/p.csv/a"]
    left = {"underscore_name": (1, "_v/_x.csv"), "dot_name": (1, "_v/q.csv/.b")}
    for pattern in ("_v/*.csv", "_v/**/*.csv", "_v"):
        assert listed(place, pattern) == (names, left)
    assert listed(place, "_v/*.csv/")[0] == ["_v/p.csv/a"]
    assert listed(place, "_v/a[1].csv") == (["_v/a[1].csv"], {"literal_path": (1, "_v/a1.csv")})


def test_a_store_folder_without_permission_is_an_error_that_names_it(memory, monkeypatch):
    place = memory("a/x.csv", "b/x.csv")
    kind = type(fsspec.filesystem("memory"))
    real = kind.ls

    def ls(self, path, *arguments, **named):
        if path.rstrip("/").endswith("/b"):
            raise PermissionError(errno.EACCES, "not yours")
        return real(self, path, *arguments, **named)

    monkeypatch.setattr(kind, "ls", ls)
    for pattern in ("*/x.csv", "**/x.csv", "*", ""):
        with pytest.raises(StorageError, match="cannot list '.*/b': access denied"):
            storage.glob(f"{place}/{pattern}")
    assert listed(place, "a*/x.csv")[0] == ["a/x.csv"]


# ------------------------------------------------------------------------------------------------------------ patterns


PARTS = st.text(alphabet="ab_.*?[]!-", min_size=1, max_size=5).filter(lambda part: "**" not in part) | st.just("**")
NAMES = st.lists(st.text(alphabet="ab_.-!", min_size=1, max_size=4), min_size=1, max_size=4)


@given(parts=st.lists(PARTS, min_size=1, max_size=3), names=NAMES)
def test_matches_are_those_of_fsspec_and_everything_below(parts, names):
    try:
        known = re.compile(glob_translate("/".join(parts)))
    except re.error:
        return
    matches = any(known.match("/".join(names[:depth])) for depth in range(1, len(names) + 1))
    assert (Pattern("/r", tuple(parts)).kind("/".join(names)) is not None) == matches


@given(parts=st.lists(PARTS, min_size=1, max_size=3), names=NAMES)
def test_a_folder_that_may_contain_a_match_is_listed(parts, names):
    try:
        pattern = Pattern("/r", tuple(parts))
    except re.error:
        return
    if pattern.kind("/".join(names)) is not None:
        assert all(pattern.enters(depth, name) is not None for depth, name in enumerate(names[:-1], 1))


# ---------------------------------------------------------------------------------------------------------- our own table


@pytest.mark.parametrize(
    ("pattern", "table", "source_format", "refused"),
    [
        ("d/*", "d/table", "auto", True),
        ("d", "d/table", "auto", True),
        ("d/**/*.parquet", "d/table", "auto", True),
        ("link/*", "d/table", "auto", True),
        ("d/../d/*", "d/table", "auto", True),
        ("d", "d", "auto", True),
        ("d/**/*.json", "d/table", "text", True),
        ("d/*.txt", "d/table", "auto", False),
        ("d/**/*.txt", "d/table", "text", False),
        ("d/*", "d2/table", "auto", False),
        ("d/*", "table", "auto", False),
        ("d/*", ".", "auto", False),
        ("d/*", "d/_table", "auto", False),
    ],
)
def test_a_source_that_would_read_its_own_table_is_refused_first(tmp_path, pattern, table, source_format, refused):
    make(tmp_path, "d/a.txt", "d/b.txt", "d/c.json", "d/e.parquet")
    (tmp_path / "link").symlink_to("d")
    source = {"uri": str(tmp_path / pattern), "format": source_format}
    job = parse_job({"source": source, "table": {"uri": str(tmp_path / table)}, "encoder": {"model": "any"}})
    if refused:
        with pytest.raises(ConfigError, match="where the table keeps its own files"):
            list_corpus(job)
    else:
        assert list_corpus(job).shards


def test_on_a_store_too_a_source_that_would_read_its_own_table_is_refused():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/own-table/d/a.txt", b"text")
    for table, refused in (("memory://own-table/d/table", True), ("memory://another/d/table", False)):
        source = {"uri": "memory://own-table/d/*"}
        job = parse_job({"source": source, "table": {"uri": table}, "encoder": {"model": "any"}})
        if refused:
            with pytest.raises(ConfigError, match="where the table keeps its own files"):
                list_corpus(job)
        else:
            assert list_corpus(job).shards
    fs.rm("/own-table", recursive=True)


@pytest.mark.parametrize(
    ("place", "folder", "inside"),
    [
        ("t", "t", True),
        ("t/", "t", True),
        ("t/out", "t/", True),
        ("t/data/../out/x/", "t", True),
        ("out/../t/x", "t", True),
        ("link/out", "t", True),
        ("t/out", "link", True),
        ("away", "t", True),
        ("out", "t", False),
        ("t2", "t", False),
        (".", "t", False),
        ("t/elsewhere", "t", False),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_place_inside_a_folder_is_found(tmp_path, place, folder, inside, scheme):
    (tmp_path / "t").mkdir()
    (tmp_path / "link").symlink_to("t")
    (tmp_path / "away").symlink_to("t/not-there-yet")
    (tmp_path / "t" / "elsewhere").symlink_to("..")
    assert is_inside(f"{scheme}{tmp_path}/{place}", f"{tmp_path}/{folder}") == inside


@pytest.mark.parametrize(
    ("place", "folder", "inside"),
    [
        ("s3://bucket/t/out/", "s3://bucket/t", True),
        ("s3a://bucket/t", "s3://bucket/t/", True),
        ("gcs://bucket/t/out", "gs://bucket/t", True),
        ("memory://t/out", "memory://t", True),
        ("s3://bucket/t2", "s3://bucket/t", False),
        ("s3://other/t/out", "s3://bucket/t", False),
        ("gs://bucket/t/out", "s3://bucket/t", False),
        ("memory://t/out", "/t", False),
    ],
)
def test_a_place_inside_a_folder_of_a_store_is_found(place, folder, inside):
    assert is_inside(place, folder) == inside
