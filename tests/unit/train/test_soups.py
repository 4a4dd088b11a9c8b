"""Soups of adapters and of whole models: the exact mix of the changes, and what does not fit together."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.encoders.settings import AdapterSettings
from actors.errors import ConfigError, ModelError
from pipeline.train.record import Record
from pipeline.train.soups import coefficients, soup
from tests.checkpoints import write_bert, write_jina_v3
from tests.checkpoints.jina_v3 import write_peft

LAYER, WORDS = "layers.0.mlp.fc1", "embeddings.word_embeddings"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_jina_v3(tmp_path_factory.mktemp("v3") / "model", layout="native", layers=1)


def adapter(folder: Path, base: Path, *, seed: int, rank: int = 4, **settings) -> Path:
    """Write an adapter of one linear layer and of the word table."""
    random = torch.Generator().manual_seed(seed)
    rows, hidden = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"].shape
    inner = load_file(base / "model.safetensors")[f"{LAYER}.weight"].shape[0]
    shapes = {
        f"{LAYER}.lora_A.weight": (rank, hidden),
        f"{LAYER}.lora_B.weight": (inner, rank),
        f"{WORDS}.lora_embedding_A": (rank, rows),
        f"{WORDS}.lora_embedding_B": (hidden, rank),
    }
    factors = {f"base_model.model.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return write_peft(folder, factors, r=rank, base_model_name_or_path=str(base), **settings)


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """The changes of the two layers that an adapter makes."""
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    stem = "base_model.model."
    return {
        LAYER: scale * tensors[f"{stem}{LAYER}.lora_B.weight"] @ tensors[f"{stem}{LAYER}.lora_A.weight"],
        WORDS: scale * tensors[f"{stem}{WORDS}.lora_embedding_B"] @ tensors[f"{stem}{WORDS}.lora_embedding_A"],
    }


def test_a_linear_soup_changes_the_weights_by_the_weighted_mean_of_the_changes(tmp_path, base):
    parts = [
        adapter(tmp_path / "a", base, seed=1, lora_alpha=3),
        adapter(tmp_path / "b", base, seed=2, rank=2, lora_alpha=5, use_rslora=True),
        adapter(tmp_path / "c", base, seed=3),
    ]
    made = soup([*map(str, parts)], str(tmp_path / "out"), weights=[2, 1, 1])
    assert (made.kind, made.rank, made.layers, made.weights) == ("adapter", 10, 2, (0.5, 0.25, 0.25))
    found, (first, second, third) = changes(tmp_path / "out"), map(changes, parts)
    for layer, change in found.items():
        torch.testing.assert_close(change, first[layer] / 2 + second[layer] / 4 + third[layer] / 4)


def test_slerp_keeps_the_length_of_changes_that_disagree(tmp_path, base):
    parts = [adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate("ab")]
    soup([*map(str, parts)], str(tmp_path / "out"), method="slerp")
    (first, second), found = map(changes, parts), changes(tmp_path / "out")
    for layer, change in found.items():
        a, b = first[layer].double(), second[layer].double()
        angle = math.acos(float((a * b).sum() / a.norm() / b.norm()))
        wanted = (a + b) * math.sin(angle / 2) / math.sin(angle)
        torch.testing.assert_close(change.double(), wanted, rtol=1e-4, atol=1e-4)
        assert change.norm() > 1.2 * (a / 2 + b / 2).norm()


def test_the_encoder_loads_a_soup_of_an_adapter_with_itself_as_that_adapter(tmp_path, base):
    one = adapter(tmp_path / "a", base, seed=1)
    shutil.copytree(one, tmp_path / "copy")
    soup([str(one), str(tmp_path / "copy")], str(tmp_path / "out"), method="slerp")
    vectors = [
        load_encoder(str(base), dtype="float32", task="x", adapters={"x": AdapterSettings(str(each))}).encode(
            ["a text"]
        )
        for each in (one, tmp_path / "out")
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize(("degrees", "t"), [(90, 0.5), (60, 0.25), (120, 0.9)])
def test_slerp_of_two_unit_vectors_is_on_the_arc(degrees, t):
    angle = math.radians(degrees)
    vectors = np.array([[1, 0], [math.cos(angle), math.sin(angle)]])
    mixed = coefficients(vectors @ vectors.T, [1 - t, t], "slerp") @ vectors
    assert mixed == pytest.approx([math.cos(t * angle), math.sin(t * angle)])


def test_slerp_of_equal_opposite_and_zero_tensors_is_linear():
    for first, second in (([1, 2], [1, 2]), ([1, 2], [-1, -2]), ([0, 0], [1, 2])):
        vectors = np.array([first, second], np.float64)
        assert coefficients(vectors @ vectors.T, [0.25, 0.75], "slerp") == pytest.approx([0.25, 0.75])


def test_three_orthogonal_vectors_of_equal_shares_have_the_length_of_one():
    assert np.linalg.norm(coefficients(np.eye(3), [1 / 3] * 3, "slerp")) == pytest.approx(1)
    assert coefficients(np.eye(3), [0.5, 0.3, 0.2], "linear") == pytest.approx([0.5, 0.3, 0.2])


def test_a_soup_of_whole_models_is_the_mean_of_their_tensors(tmp_path):
    parts = [write_bert(tmp_path / f"m{seed}", seed=seed, layers=1) for seed in (0, 1)]
    (parts[0] / "README.md").write_text("trained")
    made = soup([*map(str, parts)], str(tmp_path / "out"), weights=[3, 1])
    first, second, mixed = (load_file(each / "model.safetensors") for each in (*parts, tmp_path / "out"))
    assert mixed.keys() == first.keys()
    for name, tensor in mixed.items():
        wanted = 0.75 * first[name] + 0.25 * second[name] if tensor.is_floating_point() else first[name]
        torch.testing.assert_close(tensor, wanted)
    assert made.kind == "model"
    assert not (tmp_path / "out" / "README.md").exists()
    assert describe(str(tmp_path / "out")).family == "bert"


def test_results_that_do_not_fit_together_are_refused_and_leave_nothing(tmp_path, base):
    a, b = adapter(tmp_path / "a", base, seed=1), adapter(tmp_path / "b", base, seed=2)
    model, other = write_bert(tmp_path / "m", layers=1), write_bert(tmp_path / "n", layers=2)
    moved = adapter(tmp_path / "moved", base, seed=3)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
    part = adapter(tmp_path / "part", base, seed=4)
    tensors = load_file(part / "adapter_model.safetensors")
    save_file({name: each for name, each in tensors.items() if LAYER in name}, part / "adapter_model.safetensors")
    (part / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(base), "target_modules": ["fc1"]})
    )
    wide = write_jina_v3(tmp_path / "wide", layout="native", layers=1, inner=48)
    for results, options, message in (
        ([a], {}, "two results or more, not of 1"),
        ([a, a.parent / "." / "a"], {}, "are one folder"),
        ([a, b], {"weights": [1.0]}, "1 numbers for 2 results"),
        ([a, b], {"weights": [1.0, 0.0]}, "--weights 0 must be a number above 0"),
        ([a, model], {}, "is an adapter and .* is a whole model"),
        ([a, moved], {}, "do not name one base .*--model"),
        ([a, part], {}, "do not change the same layers"),
        ([model, other], {}, "not of one base: they differ in their config.json"),
        ([model, write_bert(tmp_path / "o", layers=1)], {"model": str(base)}, "--model is the base of adapters"),
    ):
        with pytest.raises(ConfigError, match=message):
            soup([*map(str, results)], str(tmp_path / "out"), **options)
    with pytest.raises(ModelError, match="Use an adapter made for this model"):
        soup([str(a), str(b)], str(tmp_path / "out"), model=str(wide))
    with pytest.raises(ConfigError, match="already has config.json"):
        soup([str(a), str(b)], str(model))
    assert not (tmp_path / "out").exists()


def test_a_soup_of_whole_models_replaces_no_file(tmp_path):
    parts = [str(write_bert(tmp_path / f"m{seed}", seed=seed, layers=1)) for seed in (0, 1)]
    for name in ("full", "out.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for out in ("full", "full/notes.txt", "full/notes.txt/below"):
        with pytest.raises(ConfigError, match="is a file, below one, or a folder with files in it"):
            soup(parts, str(tmp_path / out))
    soup(parts, str(tmp_path / "out"))
    assert (tmp_path / "out.part" / "notes.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "m0", "m1", "out", "out.part"]


@pytest.mark.parametrize("config", ["[]", '{"base_model_name_or_path": ["x"]}', '{"base_model_name_or_path": 3}'])
def test_an_adapter_whose_config_names_no_base_is_refused(tmp_path, base, config):
    a, b = adapter(tmp_path / "a", base, seed=1), adapter(tmp_path / "b", base, seed=2)
    (b / "adapter_config.json").write_text(config)
    with pytest.raises(ConfigError, match="do not name one base"):
        soup([str(a), str(b)], str(tmp_path / "out"))


def test_very_large_weights_are_shares_too(tmp_path):
    parts = [str(write_bert(tmp_path / f"m{seed}", seed=seed, layers=1)) for seed in (0, 1)]
    assert soup(parts, str(tmp_path / "out"), weights=[1.2e308, 1.2e308]).weights == (0.5, 0.5)


def test_results_whose_records_name_other_weights_are_refused(tmp_path, base):
    def trained(name, seed, weights):
        Record({"train.model.weights": weights}, data="").write(str(tmp_path / name))
        adapter(tmp_path / name / "adapters" / "x", base, seed=seed)
        write_bert(tmp_path / name / "model", seed=seed, layers=1)
        return tmp_path / name

    here = describe(str(base), dtype="float32").weights_sha256
    a, b, other = trained("a", 1, here), trained("b", 2, here), trained("other", 3, "0" * 64)
    for kind, message in (
        ("adapters/x", "other/adapters/x' was trained on another model than"),
        ("model", "not trained from one base"),
    ):
        with pytest.raises(ConfigError, match=message):
            soup([str(a / kind), str(other / kind)], str(tmp_path / "out"))
        soup([str(a / kind), str(b / kind)], str(tmp_path / "made" / kind))


def test_adapters_whose_base_has_moved_are_combined_by_its_new_name(tmp_path, base):
    parts = [adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate("ab")]
    for part in parts:
        config = json.loads((part / "adapter_config.json").read_text())
        (part / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
    made = soup([*map(str, parts)], str(tmp_path / "out"), model=str(base))
    assert made.base == str(base)
