"""Tests of v4's adapters: those added at run time, as PEFT writes them, and those that tasks share."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.lora.store import AdapterStore, Factors
from actors.encoders.packed import pack
from actors.errors import ModelError
from tests.checkpoints import SENTENCES, write_jina_v4
from tests.checkpoints.jina_v3 import write_peft
from tests.checkpoints.jina_v4 import TASKS
from tests.unit.encoders.jina_v4_oracle import Oracle, split_adapters

TEXTS = [*SENTENCES, "x", SENTENCES[0] * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jina_v4(tmp_path_factory.mktemp("v4"))


@pytest.fixture
def encoder(folder):
    return load_encoder(str(folder), task="retrieval.passage", dtype="float32")


# Common ways to train: all layers, some layers, another rank, another scale, the word table.
TRAINED: dict[str, dict[str, Any]] = {
    "all": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "some": {"r": 2, "lora_alpha": 8, "target_modules": ["k_proj", "v_proj", "up_proj"]},
    "one": {"r": 16, "lora_alpha": 4, "use_rslora": True, "target_modules": r".*layers\.1\.mlp\.gate_proj"},
    "words": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Adapters written by PEFT, all factors random: one of the whole model, one of its language model."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2_5_VLForConditionalGeneration

    root = tmp_path_factory.mktemp("trained")
    for seed, (name, how) in enumerate(TRAINED.items()):
        torch.manual_seed(seed)
        base = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # no head is used
            config = LoraConfig(init_lora_weights=False, exclude_modules=".*visual.*", **how)
            model = get_peft_model(base, config)
        model.save_pretrained(root / name, save_embedding_layers=False)
    return root


@pytest.mark.slow
def test_an_adapter_added_at_run_time_matches_peft(encoder, folder, trained):
    oracle = Oracle(folder, {name: trained / name for name in TRAINED})
    for name in TRAINED:
        encoder.adapters.load(name, trained / name, prompt="Query: ")
    rows = encoder.tokenizer.tokenize(TEXTS, ["text-matching"] * len(TEXTS)).ids
    base = encoder.encode_tokens(rows, [None] * len(TEXTS))
    for name in TRAINED:
        expected = oracle.vectors(rows.to_pylist(), [name] * len(TEXTS))
        assert np.abs(expected - base).max() > 1e-2
        np.testing.assert_allclose(encoder.encode(TEXTS, task=name), expected, atol=1e-5, rtol=0)
    tasks = [*TRAINED, *TASKS, None]
    texts = [f"text {number}" for number in range(len(tasks))]
    mixed = encoder.encode(texts, task=tasks)
    for text, task, vector in zip(texts, tasks, mixed, strict=True):
        np.testing.assert_allclose(encoder.encode([text], task=[task])[0], vector, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "language_model.", "model.", "model.language_model."])
def test_adapters_trained_on_any_enclosing_model_are_accepted(encoder, trained, tmp_path, prefix):
    factors = load_file(trained / "all" / "adapter_model.safetensors")
    renamed = {name.replace("base_model.model.model.language_model.", f"base_model.model.{prefix}"): t for name, t in factors.items()}  # fmt: skip
    assert renamed.keys() != factors.keys() or prefix == "model.language_model."
    write_peft(tmp_path / "part", renamed, r=8, lora_alpha=16)
    encoder.adapters.load("part", tmp_path / "part")
    encoder.adapters.load("all", trained / "all")
    assert np.array_equal(encoder.encode(TEXTS, task="part"), encoder.encode(TEXTS, task="all"))


def test_replacing_a_tasks_adapter_keeps_the_task_that_shared_it(encoder, trained):
    before = {task: encoder.encode(TEXTS, task=task) for task in TASKS}
    encoder.adapters.load("retrieval.query", trained / "some")
    for task in TASKS:
        same = np.array_equal(encoder.encode(TEXTS, task=task), before[task])
        assert same == (task != "retrieval.query")
    encoder.adapters.remove("code.query")
    assert encoder.adapters.names == tuple(task for task in TASKS if task != "code.query")
    assert np.array_equal(encoder.encode(TEXTS, task="code.passage"), before["code.passage"])


def test_an_incomplete_adapter_is_refused(encoder, trained, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(trained / "some", copy)
    config = json.loads((copy / "adapter_config.json").read_text()) | {"exclude_modules": None}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    factors = load_file(copy / "adapter_model.safetensors")
    save_file({n: t for n, t in factors.items() if "layers.1.self_attn.k_proj" not in n}, copy / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ModelError, match=r"lacks the factors of layers\.1\.self_attn\.k_proj, which its config names"):
        encoder.adapters.load("legal", copy)


class Counted(dict[str, Factors]):
    """An adapter that counts how often a layer is read."""

    taken = 0

    def __getitem__(self, module):
        self.taken += 1
        return super().__getitem__(module)


def test_a_shared_adapter_is_computed_once():
    compute = Compute(torch.device("cpu"), torch.float32)
    adapter = Counted(layer=Factors(torch.randn(2, 3), torch.randn(4, 2)))
    store = AdapterStore({}, compute, {"a.query": adapter, "a.passage": adapter, "b": {}})
    x = torch.randn(6, 3)

    def added(tasks):
        batch = pack(np.arange(6), np.array([2, 2, 2]), device=compute.device, tasks=tasks)
        route = store.route(batch)
        return None if route is None else route.add("layer", x, torch.zeros(6, 4))

    alone = added(["a.query"] * 3)
    assert adapter.taken == 1
    torch.testing.assert_close(added(["a.query", "a.passage", "a.query"]), alone)
    assert adapter.taken == 1  # the factors of this set of adapters are kept
    assert added(["b", "b", None]) is None
    torch.testing.assert_close(added(["b", "a.passage", None])[2:4], alone[2:4])
    assert not added(["b", "a.passage", None])[[0, 1, 4, 5]].any()


def test_the_scale_of_published_adapters_is_read_from_their_config(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    at = copy / "adapters" / "adapter_config.json"
    at.write_text(json.dumps(json.loads(at.read_text()) | {"lora_alpha": 3, "use_rslora": True}))
    encoder = load_encoder(str(copy), task="retrieval.passage", dtype="float32")
    rows = encoder.tokenizer.tokenize(TEXTS).ids.to_pylist()
    split = split_adapters(copy, tmp_path / "split")
    for part in split.values():
        at = part / "adapter_config.json"
        at.write_text(json.dumps(json.loads(at.read_text()) | {"use_rslora": True}))
    expected = Oracle(copy, split).vectors(rows, ["retrieval"] * len(TEXTS))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
