"""A training job against its model: defaults that it fills in, and what it refuses before a row is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.errors import ConfigError, ModelError
from pipeline.job.training import parse_training
from pipeline.train.resolve import resolve, writes_checkpoint
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_colbert_v2 import write_jina_colbert_v2
from tests.checkpoints.jina_v1 import write_jina_v1
from tests.checkpoints.jina_v3 import write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4

WRITERS = {
    "bert": lambda folder: write_bert(folder, layers=1),
    "wide": lambda folder: write_bert(folder, layers=1, hidden=48),
    "v1": lambda folder: write_jina_v1(folder, layers=1),
    "v3": lambda folder: write_jina_v3(folder, layers=1),
    "native": lambda folder: write_jina_v3(folder, layers=1, layout="native"),
    "merged": lambda folder: write_jina_v4(folder, layers=1, vision=None, merged="code"),
    "colbert": lambda folder: write_jina_colbert_v2(folder, layers=1),
    "v4": lambda folder: write_jina_v4(folder, layers=1, vision=None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: str(write(root / name)) for name, write in WRITERS.items()}


def job(model: str, out: Any = None, **train: Any):
    sections: dict[str, Any] = {"train": {"model": model, **train}, "out": {"uri": "out", **(out or {})}}
    return parse_training({**sections, "data": [{"uri": "none"}]})


@pytest.mark.parametrize(
    ("model", "train", "expected"),
    [
        ("bert", {}, (16, 32.0)),
        ("bert", {"rank": 4}, (4, 8.0)),
        ("v3", {}, (4, 1.0)),  # tests.checkpoints.jina_v3.RANK
        ("v3", {"rank": 8}, (8, 2.0)),
        ("bert", {"method": "full"}, (None, None)),
    ],
)
def test_rank_and_alpha_are_those_of_the_models_own_adapters(models, model, train, expected):
    resolved, spec = resolve(job(models[model], **train))
    assert (resolved.train.rank, resolved.train.alpha, resolved.train.max_tokens) == (*expected, spec.max_tokens)


@pytest.mark.parametrize(
    ("model", "train", "out", "written"),
    [
        ("bert", {}, {}, False),
        ("bert", {"method": "full"}, {}, True),
        ("v3", {"task": "legal"}, {}, False),
        ("v3", {"task": "legal"}, {"checkpoint": True}, True),
        ("v3", {"task": "retrieval.query"}, {}, True),
    ],
)
def test_the_whole_model_is_written_where_an_adapter_alone_is_of_no_use(models, model, train, out, written):
    assert writes_checkpoint(*resolve(job(models[model], out, **train))) is written


@pytest.mark.parametrize(
    ("model", "train", "out", "said"),
    [
        ("v1", {}, {}, "train.method is lora, and .* is of family 'jina_v1', to which the encoder adds no adapter; set method: full"),
        ("v3", {"method": "full"}, {}, "train.method is full, and the weights of .* carry its own adapters"),
        ("v4", {"task": ["retrieval.query", "retrieval.passage"]}, {}, "share an adapter in .*; name one of them"),
        ("bert", {"matryoshka": [16, 32]}, {}, "train.matryoshka names 32, and a vector of .* has 32 dimensions"),
        ("bert", {"max_tokens": 1000}, {}, "max_tokens"),
        ("bert", {"rank": 10**12}, {}, "train.rank is 1000000000000, and the layers of .* are 32 wide.*set 32 or less"),
        ("bert", {"stage": "joint"}, {}, "train.stage is joint, .* is none; take jinaai/jina-embeddings-v4, or"),
        ("bert", {}, {"checkpoint": True}, "out.checkpoint is for models that carry their adapters"),
        ("merged", {"task": "query"}, {}, "names query, and .* has a task of this name without an adapter that could be replaced"),
        ("native", {"task": "text.matching"}, {"checkpoint": True}, "have one folder, 'text_matching'"),
        ("v3", {"rank": 8, "task": "retrieval.query"}, {}, "all adapters in a checkpoint like .* have rank 4 and alpha 1;"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_allow_is_refused(models, model, train, out, said):
    with pytest.raises(ConfigError, match=said):
        resolve(job(models[model], out, **train))


def test_a_model_without_a_dense_vector_is_refused_in_every_stage(models):
    with pytest.raises(ModelError, match="makes many vectors a row and none of them dense, which cannot be trained"):
        resolve(job(models["colbert"]))
    with pytest.raises(ModelError, match="is of family .*, which cannot be trained"):
        resolve(job(models["colbert"], stage="joint"))


def test_quantized_weights_are_refused(models, tmp_path):
    folder = write_bert(tmp_path / "int8", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ConfigError, match="has weights that are quantized"):
        resolve(job(str(folder)))


def test_an_adapter_of_another_model_is_refused(models, tmp_path):
    from actors.encoders import describe
    from actors.encoders.twins import load_twin
    from actors.encoders.twins.factors import save_factors
    from actors.encoders.twins.lora import add_lora, factors_of

    def adapter(name: str):
        twin = load_twin(describe(models[name]))
        add_lora(twin, ["legal"], rank=2, alpha=8.0, seed=0)
        save_factors(twin, factors_of(twin, "legal"), tmp_path / name)
        return str(tmp_path / name)

    resolved, _ = resolve(job(models["bert"], start_from=adapter("bert")))
    assert (resolved.train.rank, resolved.train.alpha) == (2, 8.0)
    with pytest.raises(ConfigError, match="an adapter of rank 2 and alpha 8, which it keeps"):
        resolve(job(models["bert"], start_from=str(tmp_path / "bert"), rank=4))
    with pytest.raises(ConfigError, match=r"train\.start_from.*(shape|made for this model|needs)"):
        resolve(job(models["bert"], start_from=adapter("wide")))
    twin_of_bert = str(write_bert(tmp_path / "other", layers=1, seed=1))
    with pytest.raises(ConfigError, match="an adapter fits the model that it was trained on"):
        resolve(job(twin_of_bert, start_from=str(tmp_path / "bert")))


def test_a_result_that_would_replace_its_model_is_refused(models, tmp_path):
    inside = write_bert(tmp_path / "legal" / "model", layers=1)
    for place, model in ((models["bert"], models["bert"]), (str(tmp_path / "legal"), str(inside))):
        with pytest.raises(ConfigError, match="would replace files of it"):
            resolve(job(model, {"uri": place}))
