"""Adapters of BERT, XLM-RoBERTa and both variants of Jina v2: PEFT on transformers' classes, v2's formulas in float64."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.encoders import describe, encoder, load_encoder
from actors.encoders.compute import linear
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.settings import AdapterSettings
from actors.errors import ConfigError, ModelError
from tests.checkpoints import SENTENCES, write_bert, write_jina_v2
from tests.checkpoints.jina_v3 import write_peft
from tests.unit.encoders.jina_v2_reference import Reference

ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
# Inputs and outputs of the layers of a v2 model by variant; the widths are those of `write_jina_v2`.
MLP = {
    "A": {"mlp.gated_layers": (48, 192), "mlp.wo": (96, 48)},
    "B": {"mlp.up_gated_layer": (48, 192), "mlp.down_layer": (96, 48)},
}
# Common ways to train: all linear layers (the pooler too), some, one, the tables.
TRAINED: dict[str, dict[str, Any]] = {
    "all": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "some": {"r": 2, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "one_layer": {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": r"encoder\.layer\.1\.intermediate\.dense"},
    "tables": {"r": 2, "lora_alpha": 4, "target_modules": ["word_embeddings", "token_type_embeddings"]},
}  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def bert(request, tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("model"), kind=request.param)


@pytest.fixture(scope="module")
def peft(bert, tmp_path_factory):
    """PEFT's models by name; their folders have the same names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    root, models = tmp_path_factory.mktemp("trained"), {}
    for seed, (name, settings) in enumerate(TRAINED.items()):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            models[name] = get_peft_model(
                AutoModel.from_pretrained(bert), LoraConfig(init_lora_weights=False, task_type="FEATURE_EXTRACTION", **settings)
            ).eval()  # fmt: skip
        models[name].save_pretrained(root / name)
    return root, models


@pytest.fixture(params=["A", "B"])
def v2(request, tmp_path):
    return write_jina_v2(tmp_path / "v2", variant=request.param)


def write_v2_adapter(model: Path, folder: Path, *, prefix: str = "", **settings: Any) -> Path:
    """Writes an adapter of all layers and of the words, with a scale of 2."""
    variant = "B" if Reference(model).code else "A"
    random = torch.Generator().manual_seed(3)
    factors = {}
    for i in range(2):
        shapes = dict.fromkeys(ATTENTION, (48, 48)) | MLP[variant]
        for name, (inputs, outputs) in shapes.items():
            stem = f"base_model.model.{prefix}encoder.layer.{i}.{name}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(3, inputs, generator=random) * 0.1
            factors[f"{stem}.lora_B.weight"] = torch.randn(outputs, 3, generator=random) * 0.1
    rows = len(Reference(model).w["embeddings.word_embeddings.weight"])
    stem = f"base_model.model.{prefix}embeddings.word_embeddings.lora_embedding"
    factors[f"{stem}_A"] = torch.randn(3, rows, generator=random) * 0.3
    factors[f"{stem}_B"] = torch.randn(48, 3, generator=random) * 0.3
    return write_peft(folder, factors, **{"r": 3, "lora_alpha": 6, **settings})


def merged_reference(model: Path, folder: Path) -> Reference:
    """The formulas with W + 2 B A in place of W."""
    reference, factors = Reference(model), load_file(folder / "adapter_model.safetensors")
    for name, down in factors.items():
        if "lora_A" in name or "embedding_A" in name:
            up = factors[name.replace("_A", "_B")]
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            change = 2 * (up.double() @ down.double())
            reference.w[f"{layer}.weight"] += change.T if "embedding" in name else change
    return reference


def mean_vectors(model: Any, ids: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        means = [model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids]
    vectors: np.ndarray = torch.nn.functional.normalize(torch.stack(means), dim=1).numpy()
    return vectors


@pytest.mark.slow
def test_adapters_of_bert_give_the_vectors_of_peft(bert, peft):
    root, models = peft
    loaded = load_encoder(str(bert), dtype="float32", adapters={})
    for name in TRAINED:
        loaded.adapters.load(name, root / name)
    assert loaded.adapters.names == tuple(TRAINED)
    ids = loaded.tokenizer.tokenize(SENTENCES).ids
    base = loaded.encode(SENTENCES)
    expected = {name: mean_vectors(models[name], ids.to_pylist()) for name in TRAINED}
    for name in TRAINED:
        assert np.abs(expected[name] - base).max() > 1e-2
        np.testing.assert_allclose(loaded.encode(SENTENCES, task=name), expected[name], atol=1e-5)
    tasks: list[Any] = [(None, *TRAINED)[i % 5] for i in range(len(SENTENCES))]
    for i, vector in enumerate(loaded.encode(SENTENCES, task=tasks)):
        np.testing.assert_allclose(vector, base[i] if tasks[i] is None else expected[tasks[i]][i], atol=1e-5)


@pytest.mark.slow
def test_a_settings_adapter_is_a_task_and_changes_only_its_lineage(bert, peft):
    root, models = peft
    plain = describe(str(bert), dtype="float32")
    adapters = {"legal": AdapterSettings(str(root / "all"))}
    spec = describe(str(bert), dtype="float32", adapters=adapters, task="legal")
    path = root / "all"
    for same in (path, str(path), {"path": path, "query_path": None}):
        assert describe(str(bert), dtype="float32", adapters={"legal": same}, task="legal") == spec
    assert spec.with_task(None).lineage() == plain.lineage()
    assert {key for key in spec.lineage() if spec.lineage()[key] != plain.lineage().get(key)} == {
        "task",
        "adapter_sha256",
    }
    loaded = load_encoder(spec)
    ids = loaded.tokenizer.tokenize(SENTENCES).ids.to_pylist()
    np.testing.assert_allclose(loaded.encode(SENTENCES), mean_vectors(models["all"], ids), atol=1e-5)
    # The fused products of the base are used without an adapter: bit for bit the same vectors.
    assert np.array_equal(loaded.encode(SENTENCES, task=[None] * len(SENTENCES)), load_encoder(plain).encode(SENTENCES))


def test_queries_may_have_an_adapter_of_their_own(bert, peft, tmp_path):
    root, models = peft
    copy = shutil.copytree(root / "some", tmp_path / "some")
    legal = AdapterSettings(str(root / "all"), query_path=str(copy))
    spec = describe(str(bert), dtype="float32", adapters={"legal": legal}, task="legal")
    assert spec.tasks == ("legal", "legal.query")
    loaded, asking = load_encoder(spec), load_encoder(spec.query_side())
    ids = loaded.tokenizer.tokenize(SENTENCES).ids.to_pylist()
    np.testing.assert_allclose(loaded.encode(SENTENCES), mean_vectors(models["all"], ids), atol=1e-5)
    np.testing.assert_allclose(asking.encode(SENTENCES), mean_vectors(models["some"], ids), atol=1e-5)
    assert len({spec.lineage()["adapter_sha256"], spec.lineage()["query_adapter_sha256"]}) == 2
    assert spec.query_side().lineage()["adapter_sha256"] == spec.lineage()["query_adapter_sha256"]
    loaded.adapters.load("other", root / "all")
    loaded.use_spec(loaded.spec.with_task("other"))
    loaded.adapters.remove("legal")
    assert {load_encoder(loaded.spec).adapters.names, loaded.adapters.names} == {("other",)}
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match=r"adapter 'legal\.query': its path .* is neither a directory"):
        load_encoder(spec)


def test_tasks_with_a_prompt_only_stay_beside_adapters(tmp_path, peft, bert):
    root, _ = peft
    shutil.copytree(bert, tmp_path / "prompted")
    prompts = {"query": "query: ", "passage": "passage: "}
    (tmp_path / "prompted" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    loaded = load_encoder(str(tmp_path / "prompted"), dtype="float32")
    assert loaded.spec.tasks == ("query", "passage")
    assert not loaded.adapters.names
    query = loaded.encode(SENTENCES, task="query")
    loaded.adapters.load("legal", root / "all")
    assert loaded.adapters.names == ("legal",)
    assert np.array_equal(loaded.encode(SENTENCES, task="query"), query)
    mixed = loaded.encode(SENTENCES[:3], task=["legal", "query", None])
    np.testing.assert_allclose(mixed[1], query[1], atol=1e-5)
    np.testing.assert_allclose(mixed[0], loaded.encode(SENTENCES[:1], task="legal")[0], atol=1e-5)
    with pytest.raises(ConfigError, match="'query' is a task of .* without an adapter"):
        loaded.adapters.remove("query")


def test_adapters_of_v2_give_the_vectors_of_its_formulas(v2, tmp_path):
    folder = write_v2_adapter(v2, tmp_path / "legal")
    loaded = load_encoder(str(v2), dtype="float32")
    base = loaded.encode(SENTENCES)
    loaded.adapters.load("legal", folder)
    reference = merged_reference(v2, folder)
    ids = loaded.tokenizer.tokenize(SENTENCES).ids.to_pylist()
    expected = np.stack([reference.vector(row) for row in ids])
    assert np.abs(expected - base).max() > 1e-2
    np.testing.assert_allclose(loaded.encode(SENTENCES, task="legal"), expected, atol=1e-5)
    tasks: list[str | None] = ["legal" if i % 2 else None for i in range(len(SENTENCES))]
    mixed = loaded.encode(SENTENCES, task=tasks)
    np.testing.assert_allclose(mixed[1::2], expected[1::2], atol=1e-5)
    np.testing.assert_allclose(mixed[::2], base[::2], atol=1e-5)
    assert np.array_equal(loaded.encode(SENTENCES), base)


def test_an_adapter_of_the_published_class_of_v2_is_accepted(v2, tmp_path):
    loaded = load_encoder(str(v2), dtype="float32")
    for name, prefix in (("inner", ""), ("outer", "bert.")):
        loaded.adapters.load(name, write_v2_adapter(v2, tmp_path / name, prefix=prefix))
    inner, outer = (loaded.encode(SENTENCES, task=name) for name in ("inner", "outer"))
    assert np.array_equal(inner, outer)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_bert, write_jina_v2])
def test_int8_multiplies_the_base_and_adds_an_exact_adapter(write, tmp_path, bert, peft):
    model = bert if write is write_bert else write_jina_v2(tmp_path / "v2")
    folder = peft[0] / "all" if write is write_bert else write_v2_adapter(model, tmp_path / "legal")
    rough, exact = (load_encoder(str(model), dtype=dtype) for dtype in ("int8", "float32"))
    vectors = []
    for loaded in (rough, exact):
        loaded.adapters.load("legal", folder)
        vectors.append(loaded.encode(SENTENCES, task="legal"))
    assert 0.98 < (vectors[0] * vectors[1]).sum(1).min() < 1 - 1e-6


@pytest.mark.parametrize("write", [write_bert, write_jina_v2])
def test_a_merged_adapter_gives_the_vectors_of_one_beside_the_base(write, tmp_path, bert, peft, monkeypatch):
    monkeypatch.setattr(linear, "_can_pack", lambda compute: False)  # as on a GPU
    monkeypatch.setattr(encoder, "fuses", lambda device: True)
    model = bert if write is write_bert else write_jina_v2(tmp_path / "v2", variant="B")
    folder = peft[0] / "all" if write is write_bert else write_v2_adapter(model, tmp_path / "legal")
    compute = Compute(torch.device("cpu"), torch.float32)
    spec = describe(str(model), adapters={"legal": AdapterSettings(str(folder))}, task="legal", dtype="float32")
    merged, beside = (Encoder(spec, compute=compute, one_task=one) for one in (True, False))
    np.testing.assert_allclose(merged.encode(SENTENCES), beside.encode(SENTENCES), atol=2e-6)
    with pytest.raises(ConfigError, match="loaded for task 'legal' alone"):
        merged.encode(SENTENCES[:1], task=[None])


@pytest.mark.slow
def test_adapters_that_do_not_fit_are_refused(bert, v2, tmp_path):
    def one(name, inputs, outputs):
        stem = f"base_model.model.{name}.lora"
        return {f"{stem}_A.weight": torch.zeros(4, inputs), f"{stem}_B.weight": torch.zeros(outputs, 4)}

    gated = "mlp.up_gated_layer" if Reference(v2).code else "mlp.gated_layers"
    cases = (
        (
            bert,
            one("encoder.layer.0.mlp.wo", 64, 32),
            "changes 'encoder.layer.0.mlp.wo', which is no layer of this model",
        ),
        (bert, one("encoder.layer.0.output.dense", 32, 32), r"of shape \[4, 32\]; rank 4 .* need \[4, 64\]"),
        (
            bert,
            one("embeddings.position_embeddings", 64, 32),
            "which is no layer of this model that an adapter may change",
        ),
        (bert, one("pooler.dense", 32, 32), "changes only pooler.dense, which this model does not use for its vectors"),
        (v2, one(f"encoder.layer.1.{gated}", 48, 96), r"of shape \[96, 4\]; rank 4 .* need \[192, 4\]"),
        (v2, one("encoder.layer.0.output.dense", 96, 48), "changes 'encoder.layer.0.output.dense'"),
    )
    for number, (model, factors, message) in enumerate(cases):
        folder = write_peft(tmp_path / f"{number}", factors, r=4, target_modules=None)
        with pytest.raises(ModelError, match=message):
            load_encoder(str(model)).adapters.load("legal", folder)
