"""The adapters with which a training starts: named in the job, of one size, and found from another machine."""

from __future__ import annotations

import pytest

from actors.errors import ConfigError
from pipeline.job.places import models
from pipeline.job.training import parse_training
from pipeline.train.resolve import resolve
from tests.checkpoints import write_jina_v3
from tests.checkpoints.jina_v3 import write_peft

JOINT = ("retrieval.query", "retrieval.passage")


def job_of(model, **train):
    return parse_training(
        {"train": {"model": str(model), "stage": "pairs", **train}, "data": [{"uri": "pairs"}], "out": {"uri": "out"}}
    )


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write_jina_v3(tmp_path_factory.mktemp("v3"), layout="native", layers=1)


def test_a_job_names_one_start_for_each_adapter(v3):
    assert job_of(v3, start_from="separation").train.start_from == ("separation",)
    job = job_of(v3, task=JOINT, start_from=JOINT)
    resolved, _ = resolve(job)
    assert (resolved.train.start_from, resolved.train.rank, resolved.train.alpha) == (JOINT, 4, 1.0)


def test_starts_of_several_sizes_are_refused(v3, tmp_path):
    from safetensors.torch import load_file

    factors = load_file(v3 / "separation" / "adapter_model.safetensors")
    other = write_peft(tmp_path, factors, lora_alpha=8)
    with pytest.raises(
        ConfigError, match=r"have one rank and one alpha, and .* separation rank 4 and alpha 1, .* alpha 8;"
    ):
        resolve(job_of(v3, task=["a", "b"], start_from=["separation", str(other)]))


def test_each_start_is_a_place_that_another_machine_may_not_have(v3):
    document = job_of(v3, task=["a", "b"], start_from=["one", "two"]).model_dump(mode="json", exclude_none=True)
    found = [(name, section[key]) for name, section, key in models(document)]
    assert found == [("train.model", str(v3)), ("train.start_from", "one"), ("train.start_from", "two")]
