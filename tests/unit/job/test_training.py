"""Training jobs: their forms, and what is refused with the value, the rule and the fix."""

from __future__ import annotations

import re

import pytest
import yaml

from actors.errors import ConfigError
from pipeline.cluster.schedule.render import job_text
from pipeline.cluster.submit import stage
from pipeline.job.load import load_curation, load_job, load_training
from pipeline.job.training import parse_training

TRAIN = {"model": "m"}
DATA = {"uri": "pairs.jsonl"}
JOB = {"train": TRAIN, "data": [DATA], "out": {"uri": "out"}}


def changed(**sections):
    """The job with some keys of `train` and `data` changed, or a section replaced."""
    train, data = sections.pop("train", {}), sections.pop("data", {})
    rows = [{**DATA, **data}] if isinstance(data, dict) else data
    return {**JOB, "train": {**TRAIN, **train}, "data": rows, **sections}


@pytest.mark.parametrize(
    ("train", "tasks"),
    [
        ({}, ("trained",)),
        ({"task": "legal"}, ("legal",)),
        ({"task": ["retrieval.query", "retrieval.passage"]}, ("retrieval.query", "retrieval.passage")),
        ({"method": "full"}, ()),
    ],
)
def test_a_task_is_a_name_or_two(train, tasks):
    assert parse_training(changed(train=train)).train.tasks == tasks


@pytest.mark.parametrize(
    ("stage", "loss", "expected"), [("pairs", None, "infonce"), ("scored", None, "cosent"), ("scored", "pearson", "pearson")]
)  # fmt: skip
def test_a_source_has_the_loss_of_the_stage_unless_it_names_one(stage, loss, expected):
    assert parse_training(changed(train={"stage": stage}, data={"loss": loss})).data[0].loss == expected


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (changed(train={"modl": "x"}), "train.modl: no such key; did you mean 'model'?"),
        (changed(train={"task": ["a", "a"]}), "train.task: must be the name of an adapter, or two names for queries and"),
        (changed(train={"task": "../legal"}), "train.task: '../legal' is no name of an adapter"),
        (changed(train={"task": []}), "train.task: must be the name of an adapter, or two names"),
        (changed(train={"method": "full", "rank": 4}), "train: rank is about an adapter, and method full trains none"),
        (changed(train={"method": "full", "task": "x"}), "train: task is about an adapter, and method full trains none"),
        (changed(train={"task": ["a", "b"], "start_from": "x"}), "start_from must name one adapter for each of a, b, not 1"),
        (changed(train={"stage": "joint", "method": "full"}), "stage joint trains an adapter and the projection beside it"),
        (changed(train={"stage": "joint"}, data={"loss": "cosent"}), "data.0.loss is cosent, and stage joint has only"),
        (changed(train={"detach_dense": True}), "train: detach_dense is about late interaction, and stage is pairs"),
        (changed(data={"negatives": "n", "loss": "cosent"}), "data.0 has negatives, which loss cosent does not use"),
        (changed(train={"matryoshka": "64d"}), "train.matryoshka: must be numbers of dimensions, as in [384, 128], not '64d'"),
        (changed(train={"matryoshka": [64, 64]}), "train.matryoshka: [64, 64] has a number of dimensions twice"),
        (changed(train={"temperature": 0}), "train.temperature: input should be greater than 0, not 0"),
        (changed(train={"learning_rate": 1e300}), "train.learning_rate: input should be less than or equal to 100"),
        (changed(train={"batch_rows": True}), "train.batch_rows: must not be true"),
        (changed(train={"evaluate": {"corpus": "c"}}), "train.evaluate.queries: is required"),
        (changed(train={"distill": 1.0}), "train.distill needs the vectors of a teacher"),
        (changed(data={"teacher": "t"}), "data.0.teacher is used with train.distill only"),
        (changed(data={"loss": "separation"}), "data.0.loss is separation, which needs the class of a row"),
        (changed(data={"label": "kind"}), "data.0.label names a class, and loss infonce has none"),
        (changed(data={"passage": "query"}), "data.0: 'query' has two uses here"),
        (changed(data={"negatives": "n", "negative_columns": ["a"]}), "negatives and negative_columns both give"),
        (changed(data={"texts": {"uri": "t"}}), "texts gives the texts of mined negatives"),
        (changed(data=[]), "data: must be a list of sources"),
        (changed(data="pairs.jsonl"), "data: must be a list of sources, as in `[{uri: pairs.jsonl}]`, not 'pairs.jsonl'"),
        (changed(run={"workers": 3}), "train.batch_rows is 1024, and 3 workers cannot share them equally"),
        (changed(run={"workers": 2, "address": "inline"}), "run: workers is 2, and address inline is this process"),
        (changed(run={"gpus_per_worker": 2}), "run.gpus_per_worker: input should be less than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused(job, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_training(job)


def test_a_file_with_train_is_a_training_job_and_no_other(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("train: {model: m}\ndata: [{uri: a}]\nout: {uri: b}\n")
    job = load_training(path, settings=["data.0.weight=2", "train.seed=7"])
    assert (job.data[0].weight, job.train.seed) == (2.0, 7)
    for load in (load_job, load_curation):
        with pytest.raises(ConfigError, match="run it with `vectide train`"):
            load(path)
    path.write_text("corpus: {uri: a}\nsteps: [dedup]\ntable: {uri: b}\n")
    with pytest.raises(ConfigError, match="has no train, so it is no training job: run it with `vectide curate`"):
        load_training(path)
    with pytest.raises(ConfigError, match=r"'data\.1' is not a section"):
        load_training(None, settings=["data=[{uri: a}]", "data.1.weight=2"])


def test_a_mistake_in_a_source_is_said_once():
    with pytest.raises(ConfigError) as raised:
        parse_training(changed(data={"weight": "x"}))
    assert len(str(raised.value).splitlines()) == 2


def test_a_job_that_runs_elsewhere_has_its_places_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "staged").mkdir()
    files = {"corpus": "c.parquet", "queries": "q.parquet", "judgements": "j.parquet"}
    job = parse_training(
        changed(
            train={"model": "model", "evaluate": files},
            data={"negatives": "mined", "texts": {"uri": "s3://lake/texts"}},
        )
    )
    staged = stage(job, tmp_path / "staged")
    assert staged == yaml.safe_load((tmp_path / "staged" / "job.yaml").read_text())
    assert staged["out"]["uri"] == f"{tmp_path}/out"
    assert staged["data"][0]["negatives"] == f"{tmp_path}/mined"
    assert staged["data"][0]["texts"]["uri"] == "s3://lake/texts"
    assert staged["train"]["evaluate"]["queries"] == f"{tmp_path}/q.parquet"
    assert staged["train"]["model"] == f"{tmp_path}/model"
    with pytest.raises(ConfigError, match=r"out\.uri 'out' is relative to this machine's folder"):
        job_text(job)
