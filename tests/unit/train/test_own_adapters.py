"""Training of models that have adapters of their own (v3, v4): where it starts, and the model that it results in."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from actors.encoders import load_encoder
from actors.encoders.settings import AdapterSettings
from actors.errors import ConfigError
from pipeline.job.places import models
from pipeline.job.training import parse_training
from pipeline.train.plan import plan_training
from pipeline.train.resolve import resolve
from pipeline.train.run import train
from tests.checkpoints import SENTENCES, write_jina_v3, write_jina_v4
from tests.checkpoints.jina_v3 import write_peft

JOINT = ("retrieval.query", "retrieval.passage")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of each family, and pairs."""
    folder = tmp_path_factory.mktemp("own")
    write_jina_v3(folder / "v3", layers=1)
    write_jina_v3(folder / "native", layout="native", layers=1)
    write_jina_v4(folder / "v4", layers=1, vision=None)
    random = Random(0)
    words = " ".join(SENTENCES).split()
    rows = [{name: " ".join(random.choices(words, k=5)) for name in ("query", "passage")} for _ in range(16)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def job_of(place, model, *, out="out", checkpoint=False, **settings):
    document = {
        "train": {"model": str(place / model), "batch_rows": 8, "max_steps": 2, "learning_rate": 0.05, **settings},
        "data": [{"uri": str(place / "pairs.jsonl")}],
        "out": {"uri": str(out), "checkpoint": checkpoint},
        "run": {"address": "inline"},
    }
    return parse_training(document)


# The result


def encoder_of_card(out):
    """The encoder of the job file in the model card of a result."""
    encoder = yaml.safe_load((out / "README.md").read_text().split("```yaml")[1].split("```")[0])["encoder"]
    adapters = {
        name: AdapterSettings(**settings) if isinstance(settings, dict) else AdapterSettings(settings)
        for name, settings in encoder.pop("adapters", {}).items()
    }
    return load_encoder(encoder.pop("model"), dtype="float32", adapters=adapters, **encoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings", "trained"),
    [
        ("v3", {"task": JOINT, "start_from": JOINT}, JOINT),
        ("v4", {"task": "retrieval", "start_from": "retrieval"}, JOINT),
        ("v4", {"task": "code.passage"}, ("code.query", "code.passage")),
    ],
)
def test_an_adapter_of_the_model_is_replaced_in_it(place, tmp_path, model, settings, trained):
    job = job_of(place, model, out=tmp_path / "out", **settings)
    result = train(job)
    assert (result.adapters, result.checkpoint) == ({}, f"{job.out.uri}/model")
    encoder = encoder_of_card(tmp_path / "out")
    assert encoder.spec.task == trained[-1]
    before = load_encoder(str(place / model), dtype="float32", task=trained[-1])
    for task in encoder.spec.tasks:
        moved = np.abs(encoder.encode(SENTENCES, task=task) - before.encode(SENTENCES, task=task)).max()
        assert (moved > 1e-3) == (task in trained), task


@pytest.mark.slow
@pytest.mark.parametrize("model", ["v3", "native", "v4"])
def test_a_new_adapter_is_a_folder_and_may_be_in_the_model_too(place, tmp_path, model):
    job = job_of(place, model, out=tmp_path / "out", checkpoint=True, task="legal")
    result = train(job)
    encoder = encoder_of_card(tmp_path / "out")
    assert (encoder.spec.task, [*result.adapters]) == ("legal", ["legal"])
    whole = load_encoder(str(result.checkpoint), dtype="float32", task="legal.passage" if model == "v4" else "legal")
    np.testing.assert_allclose(whole.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5, rtol=0)


# The start


def test_a_plan_counts_the_tables_that_a_start_changes(place):
    new, further = (
        plan_training(job_of(place, "v3", out=place / "none", task=JOINT, start_from=start)).parameters
        for start in (None, JOINT)
    )
    words = len(load_file(place / "native" / "model.safetensors")["embeddings.word_embeddings.weight"])
    assert new[1] == further[1]
    assert further[0] - new[0] == 2 * 4 * ((words + 32) + (1 + 32))


def test_a_job_names_one_start_for_each_adapter(place):
    assert job_of(place, "native", start_from="separation").train.start_from == ("separation",)
    resolved, _ = resolve(job_of(place, "native", task=JOINT, start_from=JOINT))
    assert (resolved.train.start_from, resolved.train.rank, resolved.train.alpha) == (JOINT, 4, 1.0)


def test_starts_of_several_sizes_are_refused(place, tmp_path):
    factors = load_file(place / "native" / "separation" / "adapter_model.safetensors")
    other = write_peft(tmp_path, factors, lora_alpha=8)
    job = job_of(place, "native", task=["a", "b"], start_from=["separation", str(other)])
    with pytest.raises(
        ConfigError, match=r"have one rank and one alpha, and .* separation rank 4 and alpha 1, .* alpha 8;"
    ):
        resolve(job)


def test_each_start_is_a_place_that_another_machine_may_not_have(place):
    job = job_of(place, "v3", task=["a", "b"], start_from=["one", "two"])
    found = [(name, section[key]) for name, section, key in models(job.model_dump(mode="json", exclude_none=True))]
    assert found == [("train.model", str(place / "v3")), ("train.start_from", "one"), ("train.start_from", "two")]
