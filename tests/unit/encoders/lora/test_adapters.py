from __future__ import annotations

import json
import pickle
import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import load_encoder
from actors.encoders.finite import UnfitVectors
from actors.errors import ConfigError, ModelError
from tests.checkpoints import SENTENCES, write_jina_v3
from tests.checkpoints.jina_v3 import TASKS, write_peft
from tests.unit.encoders.jina_v3_oracle import Oracle

TEXTS = SENTENCES
ALL = ["word_embeddings", "token_type_embeddings", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
QUERY = "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"

# Common ways to train: all layers, some layers, another rank, another scale.
TRAINED: dict[str, dict[str, Any]] = {
    "all": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "some": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc2"]},
    "rank_stabilised": {"r": 16, "lora_alpha": 4, "use_rslora": True, "target_modules": ["k_proj", "o_proj"]},
    "one_layer": {"r": 4, "lora_alpha": 16, "target_modules": r"layers\.1\.mlp\.fc1"},
    "words": {"r": 4, "lora_alpha": 8, "target_modules": r".*word_embeddings"},
}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return write_jina_v3(tmp_path_factory.mktemp("native"), layout="native")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_jina_v3(tmp_path_factory.mktemp("hub"), layout="hub")


@pytest.fixture(scope="module")
def trained(native, tmp_path_factory):
    """Adapters written by PEFT, all factors random."""
    from peft import LoraConfig, get_peft_model
    from transformers import JinaEmbeddingsV3Model

    root = tmp_path_factory.mktemp("trained")
    for seed, (name, settings) in enumerate(TRAINED.items()):
        torch.manual_seed(seed)
        base = JinaEmbeddingsV3Model.from_pretrained(native)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def encoder(hub):
    return load_encoder(str(hub), dtype="float32")


@pytest.fixture
def broken(trained, tmp_path):
    """Makes copies of the adapter "all" with another config or other tensors."""

    def make(tensors=None, **settings):
        copy = tmp_path / "broken"
        shutil.copytree(trained / "all", copy)
        config = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(config | settings))
        kept = load_file(copy / "adapter_model.safetensors") | (tensors or {})
        save_file({name: t for name, t in kept.items() if t is not None}, copy / "adapter_model.safetensors")
        return copy

    return make


def test_the_published_adapters_are_available_by_name(encoder, native):
    assert encoder.adapters.names == TASKS
    assert tuple(load_encoder(str(native)).adapters) == TASKS
    assert "separation" in encoder.adapters
    assert "legal" not in encoder.adapters


@pytest.mark.slow
def test_an_adapter_added_at_run_time_matches_peft(encoder, native, trained):
    oracle = Oracle(native, **{name: trained / name for name in TRAINED})
    for name in TRAINED:
        encoder.adapters.load(name, trained / name)
    rows = encoder.tokenizer.tokenize(TEXTS).ids
    for name in TRAINED:
        tasks = [name] * len(TEXTS)
        expected = oracle.vectors(rows.to_pylist(), tasks)
        assert np.abs(expected - encoder.encode_tokens(rows, [None] * len(TEXTS))).max() > 1e-2
        np.testing.assert_allclose(encoder.encode_tokens(rows, tasks), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_adapters_of_several_ranks_and_layers_share_a_micro_batch(encoder, trained):
    for name in TRAINED:
        encoder.adapters.load(name, trained / name)
    tasks = [*TRAINED, None, "separation", None, "classification", *TRAINED]
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(tasks))]
    before = encoder.stats.micro_batches
    mixed = encoder.encode(texts, task=tasks)
    assert encoder.stats.micro_batches == before + 1
    for text, task, vector in zip(texts, tasks, mixed, strict=True):
        np.testing.assert_allclose(encoder.encode([text], task=[task])[0], vector, atol=1e-5, rtol=0)


def test_adding_replacing_and_removing_adapters_changes_no_other_row(encoder, trained):
    others = [None, *TASKS[1:]]
    texts = TEXTS[: len(others)]
    first = encoder.encode(texts, task=others)
    base = encoder.family.words

    encoder.adapters.load("legal", trained / "all")
    legal = encoder.encode(TEXTS, task="legal")
    assert np.array_equal(encoder.encode(texts, task=others), first)

    encoder.adapters.load("legal", trained / "some")
    assert np.abs(encoder.encode(TEXTS, task="legal") - legal).max() > 1e-2
    assert np.array_equal(encoder.encode(texts, task=others), first)

    encoder.adapters.load("retrieval.query", trained / "all")
    assert np.array_equal(encoder.encode(texts, task=others), first)

    encoder.adapters.remove("legal")
    assert np.array_equal(encoder.encode(texts, task=others), first)
    assert encoder.adapters.names == TASKS
    with pytest.raises(ConfigError, match="no task 'legal'"):
        encoder.encode(["x"], task="legal")
    assert encoder.family.words is base
    assert encoder.family.adapters.names == TASKS  # the store released its tensors


def test_factors_of_mixed_rows_are_joined_once_until_an_adapter_is_replaced(encoder, trained, monkeypatch):
    rows = encoder.tokenizer.tokenize(TEXTS).ids
    tasks = ["text-matching" if i % 2 else "separation" for i in range(len(TEXTS))]
    join, joined = torch.cat, []

    def count(parts, dim=0):
        joined.append(dim)
        return join(parts, dim)

    monkeypatch.setattr("actors.encoders.lora.store.torch.cat", count)
    first = encoder.encode_tokens(rows, tasks)
    new, again = len(joined), encoder.encode_tokens(rows, tasks)
    assert np.array_equal(first, again)
    assert len(joined) - new < new / 2  # only masks and pooling
    encoder.adapters.load("separation", trained / "all")
    mixed = encoder.encode_tokens(rows, tasks)
    alone = encoder.encode_tokens(rows, ["separation"] * len(TEXTS))
    np.testing.assert_allclose(mixed[::2], alone[::2], atol=1e-5, rtol=0)
    np.testing.assert_allclose(mixed[1::2], first[1::2], atol=1e-5, rtol=0)
    assert np.abs(mixed[::2] - first[::2]).max() > 1e-3


def test_a_replaced_adapter_keeps_the_prompt_unless_one_is_given(encoder, trained):
    published = encoder.spec.prompts["retrieval.query"]
    encoder.adapters.load("retrieval.query", trained / "all")
    assert encoder.spec.prompts["retrieval.query"] == published
    encoder.adapters.load("legal", trained / "all", prompt="Law: ")
    replaced = encoder.encode(["a text"], task="retrieval.query")
    same = encoder.encode([published + "a text"], task="legal")
    assert np.abs(replaced - same).max() > 1e-3  # the prompt "Law: " was added too
    encoder.adapters.load("retrieval.query", trained / "all", prompt="Law: ")
    np.testing.assert_allclose(
        encoder.encode(["a text"], task="retrieval.query"), encoder.encode(["a text"], task="legal"), atol=1e-6, rtol=0
    )


def test_a_replaced_adapter_of_the_encoders_own_task_is_used(hub, trained):
    encoder = load_encoder(str(hub), dtype="float32", task="separation")
    before = encoder.encode(TEXTS)
    encoder.adapters.load("separation", trained / "all", prompt="Sort: ")
    assert encoder.spec.prompt == "Sort: "
    assert np.abs(encoder.encode(TEXTS) - before).max() > 1e-2
    with pytest.raises(ConfigError, match="is the encoder's own task"):
        encoder.adapters.remove("separation")


def test_a_swap_during_encoding_affects_whole_micro_batches(hub, native, trained):
    encoder = load_encoder(str(hub), dtype="float32")
    encoder.adapters.load("mine", trained / "all")
    rows = 30  # more than fit one micro-batch
    texts = [" ".join(TEXTS)] * rows
    ids = encoder.tokenizer.tokenize(texts).ids
    old = encoder.encode_tokens(ids, ["mine"] * rows)[0]
    pieces = encoder.micro_batches(ids, ["mine"] * rows, reduce=encoder._to_vectors)
    first = next(pieces)
    encoder.adapters.load("mine", trained / "some")
    later = list(pieces)
    new = encoder.encode_tokens(ids[:1], ["mine"])[0]
    assert later
    np.testing.assert_allclose(first.value.numpy(), np.tile(old, (len(first.rows), 1)), atol=1e-5)
    for micro in later:
        np.testing.assert_allclose(micro.value.numpy(), np.tile(new, (len(micro.rows), 1)), atol=1e-5)
    assert np.abs(old - new).max() > 1e-2


def test_a_huge_adapter_does_not_affect_other_rows(encoder, trained, tmp_path):
    factors = load_file(trained / "all" / "adapter_model.safetensors")
    # The factors are finite, but every vector computed with them is not.
    write_peft(tmp_path / "huge", {name: t * 1e30 for name, t in factors.items()}, r=8)
    encoder.adapters.load("huge", tmp_path / "huge")
    alone = encoder.encode(TEXTS[:3], task=[None, "separation", "classification"])
    with pytest.raises(UnfitVectors, match="row 3 has no vector: its vector is not finite") as refused:
        encoder.encode(TEXTS[:4], task=[None, "separation", "classification", "huge"])
    np.testing.assert_allclose(refused.value.vectors[:3], alone, atol=1e-5, rtol=0)


# The spec


def test_an_added_adapter_changes_the_lineage_of_its_task_only(encoder, trained):
    before = {task: encoder.spec.with_task(task).lineage() for task in TASKS}
    encoder.adapters.load("separation", trained / "all")
    after = {task: encoder.spec.with_task(task).lineage() for task in TASKS}
    assert [task for task in TASKS if before[task] != after[task]] == ["separation"]
    one = encoder.spec.with_task("separation").lineage()
    encoder.adapters.load("separation", trained / "some")
    assert encoder.spec.with_task("separation").lineage() != one


def test_another_process_loads_the_added_adapters(encoder, trained):
    encoder.adapters.load("legal", trained / "all", prompt="Law: ")
    encoder.adapters.load("separation", trained / "some")
    other = load_encoder(pickle.loads(pickle.dumps(encoder.spec)))
    for task in ("legal", "separation", "classification"):
        assert np.array_equal(other.encode(TEXTS, task=task), encoder.encode(TEXTS, task=task))


def test_another_process_without_the_same_adapter_raises(encoder, trained, tmp_path):
    copy = tmp_path / "legal"
    shutil.copytree(trained / "all", copy)
    encoder.adapters.load("legal", copy)
    shutil.copytree(trained / "some", copy, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="is not the one that the plan was made with"):
        load_encoder(encoder.spec)
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match="adapter 'legal': its path .* is neither a directory"):
        load_encoder(encoder.spec)


# Refused adapters; they must change nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4}, r"of shape \[8, \d+\]; rank 4 and the model's"),
        ({"r": None}, "has r None and lora_alpha 16"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora True, which is more than plain LoRA"),
        ({"bias": "all"}, "bias 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ],
)
def test_adapters_beyond_plain_lora_are_refused(encoder, broken, settings, message):
    with pytest.raises(ModelError, match=message):
        encoder.adapters.load("legal", broken(**settings))
    assert encoder.adapters.names == TASKS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({QUERY.format("A"): torch.zeros(8, 31)}, r"of shape \[8, 31\]; rank 8 .* need \[8, 32\]"),
        ({QUERY.format("B"): torch.zeros(33, 8)}, r"of shape \[33, 8\]; rank 8 .* need \[32, 8\]"),
        ({QUERY.format("A"): None}, "lacks '.*q_proj.lora_A.weight'"),
        ({QUERY.format("A"): None, QUERY.format("B"): None}, "lacks the factors of layers.0.self_attn.q_proj"),
        ({QUERY.format("A"): torch.full((8, 32), torch.nan)}, "not finite"),
        ({"base_model.model.layers.9.mlp.fc1.lora_A.weight": torch.zeros(8, 32)}, "changes 'layers.9.mlp.fc1'"),
        ({"base_model.model.layers.0.mlp.fc1.bias": torch.zeros(64)}, "is not a factor of a LoRA"),
        (
            {"base_model.model.embeddings.word_embeddings.lora_A.weight": torch.zeros(8, 32)},
            "'embeddings.word_embeddings' is an embedding in this model",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(encoder, broken, tensors, message):
    before = encoder.encode(TEXTS, task="separation")
    with pytest.raises(ModelError, match=message):
        encoder.adapters.load("separation", broken(tensors))
    assert np.array_equal(encoder.encode(TEXTS, task="separation"), before)


def test_a_folder_without_an_adapter_and_an_empty_name_are_refused(encoder, trained, tmp_path):
    with pytest.raises(ModelError, match="adapter 'legal': its path .*nowhere' is neither a directory"):
        encoder.adapters.load("legal", tmp_path / "nowhere")
    with pytest.raises(ModelError, match="adapter 'legal': .* is not an adapter: it needs"):
        encoder.adapters.load("legal", tmp_path)
    with pytest.raises(ConfigError, match="needs a name that is not empty"):
        encoder.adapters.load("", trained / "all")
    with pytest.raises(ConfigError, match="has no task 'legal'"):
        encoder.adapters.remove("legal")


def test_a_wider_model_refuses_an_adapter_of_a_narrower_one(trained, tmp_path):
    wide = load_encoder(str(write_jina_v3(tmp_path / "wide", hidden=48, dims=(48,))))
    with pytest.raises(ModelError, match="Use an adapter made for this model"):
        wide.adapters.load("legal", trained / "all")


def test_an_adapter_trained_with_a_model_head_is_accepted(encoder, trained, tmp_path):
    factors = load_file(trained / "all" / "adapter_model.safetensors")
    renamed = {name.replace("base_model.model.", "base_model.model.roberta."): t for name, t in factors.items()}
    write_peft(tmp_path / "head", renamed, r=8, lora_alpha=16)
    encoder.adapters.load("head", tmp_path / "head")
    encoder.adapters.load("all", trained / "all")
    assert np.array_equal(encoder.encode(TEXTS, task="head"), encoder.encode(TEXTS, task="all"))
