"""The job file: accepted values, and the messages for the others."""

from __future__ import annotations

import pytest
import yaml

from actors.errors import ConfigError
from pipeline.job.config import Replicas, parse_job
from pipeline.job.load import load_job

GOOD: dict[str, dict[str, object]] = {
    "source": {"uri": "corpus/*.parquet", "id": "id", "text": ["title", "text"], "keep": ["lang"]},
    "table": {"uri": "table", "partition_by": ["lang"], "precision": "float16"},
    "encoder": {"model": "some/model"},
}


def changed(**changes):
    document = {section: dict(values) for section, values in GOOD.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        document.setdefault(section, {})[name] = value
    return document


def test_defaults():
    job = parse_job(GOOD)
    assert job.run.address == "auto"
    assert job.run.replicas == "auto"
    assert job.run.max_quarantined == 0.01
    assert job.run.row_timeout_s == 600
    assert job.source.format == "auto"
    assert job.source.text == ("title", "text")


def test_one_text_column_may_be_a_plain_name():
    assert parse_job(changed(source__text="body")).source.text == ("body",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder__modle": "x"}, "encoder.modle: no such key; did you mean 'model'"),
        ({"table__precision": "float8"}, "table.precision: .*'float8'"),
        ({"run__max_quarantined": 2}, "run.max_quarantined: .*2"),
        ({"run__row_timeout_s": 0}, "run.row_timeout_s: .*0"),
        ({"run__row_timeout_s": None}, "run.row_timeout_s: .*number"),
        ({"run__replicas": 0}, "run.replicas: .*0"),
        ({"run__replicas": True}, "run.replicas: must not be true"),
        ({"run__replicas": {"min": True, "max": 2}}, "run.replicas.min: must not be true"),
        ({"run__max_quarantined": True}, "run.max_quarantined: must not be true; YAML reads yes"),
        ({"encoder__max_tokens": False}, "encoder.max_tokens: must not be false"),
        ({"run__replicas": "many"}, "run.replicas: must be a number of encoders, auto, or {min: 0, max: 8}.*'many'"),
        ({"run__replicas": {"max": 0}}, "run.replicas.max: .*0"),
        ({"run__replicas": {"min": 3, "max": 2}}, "run.replicas: min is 3 and max 2"),
        ({"run__replicas": {"mni": 1, "max": 2}}, "run.replicas.mni: no such key; did you mean 'min'"),
        ({"run__replicas": {"min": 0, "max": 2}}, "replicas.min is 0.*gpus_per_replica: 1"),
        ({"run__gpus_per_replica": 1.5}, "gpus_per_replica is 1.5; an encoder takes whole GPUs"),
        ({"run__gpus_per_replica": 1, "encoder__dtype": "int8"}, "int8 is for CPUs and run.gpus_per_replica is 1"),
        ({"run__gpus_per_replica": -1}, "run.gpus_per_replica: .*-1"),
        ({"run__labels": {}}, "run.labels: must be labels"),
        ({"run__labels": {"a b": "c"}}, "run.labels: 'a b' is not a label name"),
        ({"run__labels": {"zone": 1}}, "run.labels: zone must be a text"),
        ({"run__labels": {"zone": "in(a"}}, r"run.labels: zone must be .*'in\(a'"),
        ({"source__keep": ["embedding"]}, "keep names 'embedding'"),
        ({"source__keep": ["_hash"]}, "keep names '_hash'"),
        ({"source__keep": ["lang", "lang"]}, "names a column twice"),
        ({"source__keep": {"page": "id"}}, r"source.keep names 'id', .*as in source.keep: \{page: source_page\}"),
        ({"source__keep": {"page": ""}}, "source.keep gives 'page' an empty name in the table"),
        ({"source__keep": {"page": 3}}, "source.keep.page: .*, not 3"),
        ({"source__keep": {"a": "x", "b": "X"}}, "source.keep names 'x' and 'X'"),
        ({"source__keep": {"a": "x", "b": "x"}}, "source.keep gives 'a' and 'b' the same name 'x'"),
        (
            {"source__keep": {"lang": "language"}, "table__partition_by": ["lang"]},
            r"names \['lang'\], .*\['language'\]",
        ),
        (
            {"source__keep": ["text"], "table__keep_text": True},
            "keep_text stores .*Leave it out, or .*text: source_text",
        ),
        ({"source__keep": {"body": "Text"}, "table__keep_text": True}, "'Text', and the table has a column 'text'"),
        (
            {"source__keep": ["grid_h"], "encoder__outputs": ["dense", "multi"]},
            "'grid_h', and the table has a column 'grid_h' of its own",
        ),
        ({"table__multi": {"precision": "bfloat16"}}, "table.multi.precision: .*'int8', 'float16' or 'float32'"),
        ({"source__text": []}, "text names no column"),
        ({"table__partition_by": ["country"]}, "partition_by names .*'country'.*source.keep"),
        ({"chunking__mode": "early"}, "chunking.mode: .*'none', 'split' or 'late'.*'early'"),
        ({"chunking__max_tokens": 0}, "chunking.max_tokens: .*0"),
        ({"chunking__max_tokens": 512}, "chunking: mode is none, .*set mode: late or split"),
        ({"chunking__overlap_tokens": 9}, "chunking: mode is none, .*set mode: late or split"),
        ({"chunking__by": "word"}, "chunking.by: .*'word'"),
        ({"chunking__overlap": 9}, "chunking.overlap: no such key; did you mean 'overlap_tokens'"),
        ({"table__partition_by": 7}, "partition_by: must be a name or a list of names, not 7"),
        ({"table__uri": "/data/a%20b"}, "table.uri: has '%20', which .*name another folder"),
        ({"source__uri": "${VECTIDE_NOT_SET}/x"}, r"source.uri: \$\{VECTIDE_NOT_SET\} is not set"),
    ],
)
def test_wrong_value_is_reported_with_its_rule(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_job(changed(**changes))


def test_replicas_range_and_labels_are_accepted():
    document = changed(run__replicas={"max": 4}, run__labels={"ray.io/accelerator-type": "in(A100, H100)"})
    run = parse_job(document).run
    assert isinstance(run.replicas, Replicas)
    assert (run.replicas.min, run.replicas.max) == (1, 4)
    assert parse_job({**document, "run": run.model_dump(mode="json")}).run == run


def test_boolean_keys_accept_booleans():
    job = parse_job(changed(source__unique_ids=False, encoder__allow_untrained_dim=True, generation__publish=False))
    assert (job.source.unique_ids, job.encoder.allow_untrained_dim, job.generation.publish) == (False, True, False)


def test_int8_sets_gpus_per_replica_to_zero():
    """Otherwise a cluster with GPUs would assign each encoder one that it never uses."""
    assert parse_job(changed(encoder__dtype="int8")).run.gpus_per_replica == 0
    job = parse_job(changed(encoder__dtype="int8", run__gpus_per_replica="auto"))
    assert job.run.gpus_per_replica == 0
    assert parse_job(job.model_dump(mode="json")) == job


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError, match="modle") as caught:
        parse_job(changed(encoder__modle="x", table__precision="float8"))
    assert "table.precision" in str(caught.value)


def test_missing_section_is_named():
    with pytest.raises(ConfigError, match="encoder: is required"):
        parse_job({"source": GOOD["source"], "table": GOOD["table"]})


def test_environment_is_expanded_in_uris_only(monkeypatch):
    monkeypatch.setenv("BUCKET", "lake")
    job = parse_job(changed(source__uri="s3://${BUCKET}/x", encoder__model="${BUCKET}/model"))
    assert job.source.uri == "s3://lake/x"
    assert job.encoder.model == "${BUCKET}/model"


def test_settings_override_defaults_and_defaults_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    job = load_job(
        str(path),
        settings=["encoder.dim=256", "source.keep=[lang, url]", "run.replicas=3"],
        defaults={"encoder.model": "other/model", "encoder.dim": 1},
    )
    assert (job.encoder.model, job.encoder.dim, job.run.replicas) == ("other/model", 256, 3)
    assert job.source.keep == ("lang", "url")


def test_job_of_settings_alone():
    job = load_job(None, settings=["source.uri=a", "table.uri=b", "encoder.model=c"])
    assert (job.source.uri, job.table.uri, job.encoder.model) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("encoder.dim", "must be key=value"),
        ("encoder.dim=[", "not a YAML value"),
        ("encoder.model.name=x", "is not a section"),
    ],
)
def test_wrong_setting_is_refused(tmp_path, setting, message):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(ConfigError, match=message):
        load_job(str(path), settings=[setting])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [", "is not a YAML file"), (b"- 1\n- 2\n", "must hold sections"), (b"\xff\xfe\x00", "is not a YAML file")],
)
def test_file_that_is_no_job_is_refused(tmp_path, content, message):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_job(str(path))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the job file .*nowhere.yaml"):
        load_job(str(tmp_path / "nowhere.yaml"))


ADAPTERS = {"legal": "adapters/legal", "tax": {"path": "s3://lake/tax", "prompt": "Tax: "}}


def test_adapters_are_paths_or_sections():
    job = parse_job(changed(encoder__adapters=ADAPTERS, source__task_column="task"))
    adapters = job.encoder.settings().adapters
    assert [(adapter.path, adapter.prompt, adapter.query_prompt) for adapter in adapters.values()] == [
        ("adapters/legal", "", None),
        ("s3://lake/tax", "Tax: ", None),
    ]
    assert parse_job(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("adapters/legal", r"must be adapters by name, as in \{legal: adapters/legal\}, not 'adapters/legal'"),
        ({False: "a"}, r"must be adapters by name.*, not \{False: 'a'\}"),
        ({"": "a"}, "must be adapters by name"),
        ({"legal": None}, "has None for 'legal'; it must be the path of a PEFT folder"),
        ({"legal": ""}, "has '' for 'legal'; it must be the path of a PEFT folder"),
        (
            {"legal": {"path": "a", "query_prompt": "Q: "}, "legal.query": "b"},
            "adapters names 'legal.query', and query_prompt or query_path of 'legal' makes a task of that name; rename one of the two",
        ),
        ({"legal": {"pth": "a"}}, "encoder.adapters.legal.pth: no such key; did you mean 'path'"),
        ({"legal": {"path": "${NOPE}"}}, r"encoder.adapters.legal.path: \$\{NOPE\} is not set"),
        (
            ADAPTERS,
            "adapters names 'tax', which no row uses, because encoder.task is 'legal'; set encoder.task: tax, or name the",
        ),
    ],
)
def test_adapters_that_are_no_such_section_are_refused(adapters, message):
    with pytest.raises(ConfigError, match=message):
        parse_job(changed(encoder__task="legal", encoder__adapters=adapters))


def test_the_task_of_queries_needs_a_prompt_of_queries():
    said = "task is 'legal.query', and the adapter 'legal' has no query_prompt.* give it one, or set task: legal"
    with pytest.raises(ConfigError, match=said):
        parse_job(changed(encoder__task="legal.query", encoder__adapters={"legal": "a"}))
    adapters = {"legal": {"path": "a", "query_prompt": "Q: "}}
    assert parse_job(changed(encoder__task="legal.query", encoder__adapters=adapters)).encoder.task == "legal.query"
    assert parse_job(changed(encoder__task="legal.query", encoder__adapters={"legal.query": "a"})).encoder.adapters


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            ["id"],
            r"'id', which is reserved for the table. Rename it in the source, or keep it under another name, as in",
        ),
        ({"a": "id"}, r"'id', which is reserved for the table. Keep 'a' under another name, as in .*{a: source_a}"),
        (
            {"a": "b", "b": "b"},
            "gives 'a' and 'b' the same name 'b', and a table has one column of a name. Give one of",
        ),
        ({"a": "b", "b": "B"}, "names 'b' and 'B'. To Delta Lake, names that differ only in case are the same"),
    ],
)
def test_names_of_kept_columns_are_refused_with_the_fix(keep, message):
    with pytest.raises(ConfigError, match=rf"source\.keep {message}|source\.keep names {message}"):
        parse_job(changed(source__keep=keep))
