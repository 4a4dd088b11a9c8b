"""Job files of any content give a job or a ConfigError with a message of limited length."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from actors.errors import ConfigError
from pipeline.job.config import Job, parse_job
from pipeline.job.load import load_job

LONGEST = 20_000
SECTIONS = {
    "source": ("uri", "format", "id", "text", "keep", "task_column", "unique_ids"),
    "table": ("uri", "partition_by", "precision"),
    "encoder": ("model", "revision", "task", "dim", "max_tokens", "dtype", "allow_untrained_dim"),
    "chunking": ("mode", "max_tokens", "by", "overlap_tokens"),
    "run": ("address", "replicas", "gpus_per_replica", "unit_rows", "max_quarantined"),
}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["auto", "", "..", "${HOME}", "${", "s3://a:b@c/d", "\0", "\ud800", "text", "lang"]),
)
KEYS = st.one_of(st.text(max_size=6), st.integers(), st.none(), st.booleans(), st.tuples(st.integers()), st.floats())
ANYTHING = st.recursive(
    LEAVES, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3), max_leaves=6
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        section: st.one_of(
            ANYTHING, st.dictionaries(st.one_of(st.sampled_from(names), st.sampled_from(names), KEYS), ANYTHING)
        )
        for section, names in SECTIONS.items()
    },
)
BASE = {"source": {"uri": "a"}, "table": {"uri": "b"}, "encoder": {"model": "m"}}


def accepted(call) -> Job | None:
    """Return the job of `call`, or None for a ConfigError whose message is not empty and shorter than LONGEST."""
    try:
        job = call()
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(job, Job)
        return job
    assert 0 < len(message) < LONGEST
    return None


@given(document=st.one_of(ANYTHING, DOCUMENTS))
def test_any_document(document):
    accepted(lambda: parse_job(document))


@given(document=DOCUMENTS)
def test_valid_job_with_random_sections(document):
    changed = {name: {**BASE.get(name, {}), **part} for name, part in document.items() if isinstance(part, dict)}
    accepted(lambda: parse_job({**BASE, **changed}))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs") / "job.yaml"


SNIPPETS = st.sampled_from(
    [
        b"source:",
        b"table:",
        b" uri:",
        b"\n",
        b"  ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"!!",
        b"<<: ",
        b"'",
        b"2020-13-45",
        b"!!binary x",
        b"!!timestamp x",
        b"!!python/object:os.system",
        b"1" * 5000,
        b"\t",
        b"%",
        b"? ",
        b"0o9",
        b"1:99:99",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\0",
        b"--- ",
        b"...",
        b"!!set {a}",
        b"!!int ''",
        b"!!float x",
    ]
)


@given(data=st.one_of(st.binary(max_size=80), st.lists(SNIPPETS, max_size=12).map(b"".join)))
@example(data=b"a: 2020-13-45")
@example(data=b"a: !!binary x")
@example(data=b"a: " + b"1" * 5000)
@example(data=b"run: {replicas: 0x" + b"f" * 5000 + b"}")
@example(data=b"&a [*a]")
@example(data=b"source: &a {uri: *a}")
@example(data=b"--- a\n--- b")
@example(data=b"? [a]\n: b")
@example(data=b"? {a: b}\n: b")
@example(data=b"!!python/object/apply:os.system [true]")
def test_any_file(file, data):
    file.write_bytes(data)
    accepted(lambda: load_job(str(file)))
    accepted(lambda: load_job(str(file), settings=["run.replicas=2"], defaults={"encoder.dim": 3}))


@pytest.mark.parametrize("opening", [pytest.param("[", marks=pytest.mark.slow), "{a: ", "- ", "? "])
def test_deeply_nested_file_is_refused(file, opening):
    file.write_text(opening * 4_000)
    with pytest.raises(ConfigError, match="is not a YAML file"):
        load_job(str(file))


def test_file_that_expands_to_billions_of_values(file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    file.write_text("\n".join([*lines, "source: {uri: *a11}"]))
    assert accepted(lambda: load_job(str(file))) is None
    with pytest.raises(ConfigError, match="source"):
        load_job(str(file))


@pytest.mark.slow
@example(setting="1" * 30_000)
@example(setting="a=" + "[" * 30_000)
@example(setting="b" * 30_000 + ".c=1")
@given(
    setting=st.one_of(
        st.text(max_size=30), st.lists(SNIPPETS, max_size=6).map(lambda parts: b"".join(parts).decode("latin-1"))
    )
)
@example(setting="run.replicas=[")
@example(setting="run.replicas=2020-13-45")
@example(setting="source.uri.x=1")
@example(setting="=")
@example(setting="..=1")
def test_any_setting(file, setting):
    file.write_text(yaml.safe_dump(BASE))
    accepted(lambda: load_job(str(file), settings=[setting]))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "", ".", "/", "\ud800"])
def test_unreadable_file_name_is_refused(name):
    with pytest.raises(ConfigError, match="the job file"):
        load_job(name)
