"""Tests of the v4 checkpoints that are refused, and of the tensors that are ignored."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.errors import ModelError
from tests.checkpoints import SENTENCES, write_jina_v4
from tests.checkpoints.jina_v4 import edit

TEXTS = SENTENCES
LAYOUTS: dict[str, dict[str, Any]] = {"old": {"keys": "old"}, "new": {"keys": "new"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("v4")
    return {name: write_jina_v4(root / name, dtype=torch.bfloat16, **how) for name, how in LAYOUTS.items()}


def load(folder):
    return load_encoder(str(folder), task="retrieval.passage", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_without_any_one_tensor_is_refused(folders, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(folders[name], copy)
    tensors = load_file(copy / "model.safetensors")
    needed = [key for key in tensors if "projector" not in key]
    assert len(needed) == 2 + 2 * 12 + 1 + 3 * 12 + 5
    mark = next(key for key in needed if key.endswith("layers.0.self_attn.q_proj.weight"))
    for key in needed:
        save_file({other: t for other, t in tensors.items() if other != key}, copy / "model.safetensors")
        message = (
            "is of no family that is known" if key == mark else rf"lacks 1 of {len(needed)} tensors .* needs: {key}\."
        )
        with pytest.raises(ModelError, match=message):
            describe(str(copy), task="code.query")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["old", "new"])
def test_unused_tensors_are_ignored_and_unknown_ones_refused(folders, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(folders[name], copy)
    tensors = load_file(copy / "model.safetensors")
    fewer = {key: tensor for key, tensor in tensors.items() if "visual" not in key and "projector" not in key}
    assert len(tensors) - len(fewer) == 42 + 2
    for kept in (fewer, tensors | {"lm_head.weight": torch.zeros(1)}):
        save_file(kept, copy / "model.safetensors")
        assert np.array_equal(load(copy).encode(TEXTS), load(folders[name]).encode(TEXTS))
    save_file(tensors | {"model.extra.weight": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors that family 'jina_v4' does not know: model\.extra\.weight"):
        describe(str(copy), task="code.query")


@pytest.fixture
def broken(folders, tmp_path):
    """Makes copies of the checkpoint with changed factors in the adapters' file and changed settings."""

    def make(change=None, **settings):
        copy = tmp_path / "broken"
        shutil.copytree(folders["old"], copy)
        weights, config = (copy / "adapters" / file for file in ("adapter_model.safetensors", "adapter_config.json"))
        factors = load_file(weights)
        save_file((change or dict)(factors), weights)
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return copy

    return make


def test_an_adapter_without_any_one_factor_is_refused(broken):
    factor = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_{}.code.weight"
    copy = broken()
    weights = copy / "adapters" / "adapter_model.safetensors"
    whole = load_file(weights)
    for end in "AB":
        save_file({name: t for name, t in whole.items() if name != factor.format(end)}, weights)
        with pytest.raises(ModelError, match=rf"lacks '{factor.format(end)}'"):
            describe(str(copy), task="retrieval.query")
    save_file({name: t for name, t in whole.items() if name not in (factor.format("A"), factor.format("B"))}, weights)
    with pytest.raises(ModelError, match=r"lacks the factors of layers\.1\.mlp\.up_proj, of which the adapters"):
        describe(str(copy), task="retrieval.query")
    save_file({name: t for name, t in whole.items() if ".code." not in name}, weights)
    with pytest.raises(ModelError, match="has no tensors"):
        describe(str(copy), task="retrieval.query")


def test_factors_of_an_unlisted_adapter_are_refused(broken):
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.clustering.weight"
    copy = broken(lambda factors: factors | {name: torch.zeros(4, 32)})
    with pytest.raises(ModelError, match=rf"has '{name}', which is not a factor of a LoRA"):
        describe(str(copy), task="retrieval.query")


def test_factors_for_the_vision_tower_are_refused(broken):
    name = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.code.weight"
    copy = broken(lambda factors: factors | {name: torch.zeros(4, 16)})
    with pytest.raises(ModelError, match=r"changes 'visual\.blocks\.0\.attn\.qkv', which is no layer of this model"):
        describe(str(copy), task="retrieval.query")


def test_factors_that_are_not_finite_are_refused_at_load(broken):
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.code.weight"
    copy = broken(lambda factors: factors | {name: torch.full((4, 32), torch.nan)})
    with pytest.raises(ModelError, match=rf"has values in '{name}' that are not finite"):
        load(copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 5}, r"of shape \[4, \d+\]; rank 5 and the model's"),
        ({"use_dora": True}, "use_dora True, which is more than plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"lora_alpha": None}, "has r 4 and lora_alpha None"),
    ],
)
def test_adapters_of_another_kind_are_refused(broken, settings, message):
    with pytest.raises(ModelError, match=message):
        describe(str(broken(**settings)), task="retrieval.query")


def test_missing_adapters_are_named(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["old"], copy)
    shutil.rmtree(copy / "adapters")
    with pytest.raises(ModelError, match=r"lacks the adapter folders adapters\. .* set `task_names` in config\.json"):
        describe(str(copy), task="code.query")
    without = edit(copy, tmp_path / "without", task_names=[])
    assert describe(str(without), task="query").tasks == ("query", "passage")
    (copy / "adapters").mkdir()
    with pytest.raises(ModelError, match=r"is not an adapter: it needs adapter_config\.json and"):
        describe(str(copy), task="code.query")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types \['sliding_attention'\]"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
        ({"rope_parameters": {"type": "linear", "factor": 2.0}}, "RoPE of type 'linear'"),
        ({"num_attention_heads": 3}, "hidden_size 32, not a multiple of 2"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 where a whole number of 1 or more"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4, not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 4}, r"other shapes than its config\.json says"),
        ({"head_dim": 16}, "head_dim 16 where hidden_size and heads make it 8"),
        ({"hidden_size": None}, "hidden_size = None where a whole number"),
    ],
)
def test_another_language_model_is_refused(folders, tmp_path, text, message):
    with pytest.raises(ModelError, match=message):
        describe(str(edit(folders["old"], tmp_path / "copy", text=text)), task="code.query")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"single_vector_pool_strategy": "cls"}, "single_vector_pool_strategy 'cls'"),
        ({"task_names": "retrieval"}, "task_names 'retrieval' where a list of names"),
        ({"task_names": [1]}, r"task_names \[1\] where a list of names"),
        ({"matryoshka_dims": "all"}, "matryoshka_dims 'all' where a list of whole numbers"),
        ({"matryoshka_dims": [8, 16.5]}, r"matryoshka_dims \[8, 16\.5\] where a list of whole numbers"),
    ],
)
def test_an_unsupported_config_is_refused(folders, tmp_path, settings, message):
    with pytest.raises(ModelError, match=message):
        describe(str(edit(folders["old"], tmp_path / "copy", **settings)), task="code.query")


def test_a_text_config_that_is_not_an_object_is_refused(folders, tmp_path):
    copy = edit(folders["old"], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"text_config": ["qwen2_5_vl_text"]}))
    with pytest.raises(ModelError, match=r"text_config \['qwen2_5_vl_text'\] where settings are needed"):
        describe(str(copy), task="code.query")


def test_other_models_with_the_same_layer_names_are_not_detected(folders, tmp_path):
    copy = edit(folders["old"], tmp_path / "copy", model_type="qwen2", task_names=None)
    with pytest.raises(ModelError, match="is of no family that is known"):
        describe(str(copy), task="code.query")
