from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.errors import ConfigError, ModelError
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import SENTENCES, write_jina_v3
from tests.checkpoints.jina_v3 import PROMPTS, TASKS
from tests.examples import examples
from tests.unit.encoders.jina_v3_oracle import Oracle

TEXTS = [*SENTENCES, "", "x", SENTENCES[0] * 4]
LAYOUTS = ("hub", "native", "fused")
EACH = [*TASKS, None, None, "retrieval.query", "separation", "text-matching"]


def edit(folder, copy, **settings):
    """Copies a checkpoint and changes its config; None removes a key."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return copy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model in 16-bit files, as published, in each layout."""
    root = tmp_path_factory.mktemp("v3")
    return {layout: write_jina_v3(root / layout, layout=layout, dtype=torch.float16) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def oracle(folders):
    return Oracle(folders["native"])


@pytest.fixture(scope="module", params=LAYOUTS)
def encoder(request, folders):
    return load_encoder(str(folders[request.param]), dtype="float32")


@pytest.fixture(scope="module")
def hub(folders):
    return load_encoder(str(folders["hub"]), dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, *TASKS])
def test_every_layout_matches_transformers_and_peft(encoder, oracle, task):
    tasks = [task] * len(TEXTS)
    rows = encoder.tokenizer.tokenize(TEXTS, tasks).ids
    expected = oracle.vectors(rows.to_pylist(), tasks)
    np.testing.assert_allclose(encoder.encode(TEXTS, task=task), expected, atol=1e-4, rtol=0)
    states = encoder.encode_token_states(rows, tasks)
    np.testing.assert_allclose(states[0], oracle.states(rows[0].as_py(), task), atol=1e-4, rtol=0)


def test_tasks_and_base_give_different_vectors(hub):
    vectors = hub.encode(["the same text"] * 6, task=[None, *TASKS])
    similar = vectors @ vectors.T
    assert similar[~np.eye(6, dtype=bool)].max() < 0.99


def test_mixed_tasks_give_the_vectors_of_each_task_alone(encoder):
    mixed = encoder.encode(TEXTS, task=EACH)
    for i, task in enumerate(EACH):
        tokens = encoder.tokenizer.tokenize([TEXTS[i]], [task]).ids
        np.testing.assert_allclose(mixed[i], encoder.encode_tokens(tokens, [task])[0], atol=1e-5, rtol=0)


@examples(25)
@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from([None, *TASKS])), min_size=1, max_size=12))
def test_order_and_other_rows_change_no_vector(hub, rows):
    texts, tasks = zip(*rows, strict=True)
    together = hub.encode(texts, task=tasks)
    for text, task, vector in zip(texts, tasks, together, strict=True):
        np.testing.assert_allclose(hub.encode([text], task=[task])[0], vector, atol=1e-5, rtol=0)


@examples(40)
@given(st.text(), st.sampled_from([None, *TASKS]))
def test_any_text_has_a_finite_unit_vector(hub, text, task):
    (vector,) = hub.encode([text], task=[task])
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_row_longer_than_any_before_has_correct_positions(folders, oracle):
    encoder = load_encoder(str(folders["hub"]), dtype="float32", task="separation")
    texts = ["short", " ".join(SENTENCES * 3)]
    rows = encoder.tokenizer.tokenize(texts).ids.to_pylist()
    assert len(rows[1]) > 512
    np.testing.assert_allclose(encoder.encode(texts), oracle.vectors(rows, ["separation"] * 2), atol=1e-4, rtol=0)


def test_bfloat16_vectors_are_close(folders, hub):
    narrow = Encoder(hub.spec, compute=Compute(torch.device("cpu"), torch.bfloat16))
    cosines = (narrow.encode(TEXTS, task=EACH) * hub.encode(TEXTS, task=EACH)).sum(1)
    assert cosines.min() > 0.999


# Tasks and prompts


def test_only_the_retrieval_tasks_have_prompts(folders):
    for layout in LAYOUTS:
        spec = describe(str(folders[layout]))
        tokenizer = Tokenizer(spec)
        for task in TASKS:
            with_task = tokenizer.tokenize(["a text"], [task]).ids
            assert with_task == tokenizer.tokenize([PROMPTS.get(task, "") + "a text"], [None]).ids
        assert spec.prompts["retrieval.query"] == PROMPTS["retrieval.query"]


def test_no_task_means_no_adapter_and_no_prompt(folders):
    spec = describe(str(folders["hub"]))
    assert (spec.task, spec.prompt, spec.tasks) == (None, "", TASKS)


def test_the_specs_task_is_the_default(folders, hub):
    encoder = load_encoder(str(folders["hub"]), dtype="float32", task="retrieval.passage")
    np.testing.assert_allclose(encoder.encode(TEXTS), hub.encode(TEXTS, task="retrieval.passage"), atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoder.encode(TEXTS, task=[None] * len(TEXTS)), hub.encode(TEXTS), atol=1e-5, rtol=0)


def test_query_side_of_passages_is_the_query_task(folders):
    passage = describe(str(folders["native"]), task="retrieval.passage")
    query = passage.query_side()
    assert (query.task, query.prompt) == ("retrieval.query", PROMPTS["retrieval.query"])
    for task in ("retrieval.query", "separation", "classification", "text-matching", None):
        assert passage.with_task(task).query_side().task == task


def test_an_unknown_task_is_refused(hub):
    with pytest.raises(ConfigError, match=r"no task 'code': its tasks are retrieval\.query"):
        hub.encode(["x"], task="code")
    with pytest.raises(ConfigError, match="2 tasks for 1 rows"):
        hub.encode(["x"], task=["separation", None])


def test_sentence_transformers_files_of_the_hub_repository_are_read(folders, tmp_path, hub):
    """The files have a first module of another type, prompts by task, and a length with RoBERTa's reserved positions."""
    copy = tmp_path / "copy"
    shutil.copytree(folders["hub"], copy)
    kinds = [("", "custom_st.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    kinds.append(("2_Normalize", "sentence_transformers.models.Normalize"))
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    (copy / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("config_sentence_transformers.json", {"prompts": dict.fromkeys(TASKS, ""), "default_prompt_name": None}),
        ("sentence_bert_config.json", {"max_seq_length": 1202}),
    ):
        (copy / name).write_text(json.dumps(content))
    spec = describe(str(copy), dtype="float32")
    assert (spec.max_tokens, spec.pooling, spec.task) == (1200, "mean", None)
    assert spec.lineage() == hub.spec.lineage()


# Matryoshka


def test_vectors_of_trained_dims_are_sliced_before_normalising(folders, hub):
    full = hub.encode(TEXTS)
    for dim in (8, 16, 32):
        short = load_encoder(str(folders["hub"]), dtype="float32", dim=dim).encode(TEXTS)
        expected = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected, atol=1e-6, rtol=0)


def test_untrained_dims_are_refused_unless_allowed(folders):
    with pytest.raises(ConfigError, match="was trained for dims 8, 16, 32"):
        describe(str(folders["hub"]), dim=24)
    assert describe(str(folders["hub"]), dim=24, allow_untrained_dim=True).dim == 24


# What loading refuses


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_without_any_one_tensor_is_refused(folders, tmp_path, layout):
    copy = tmp_path / "copy"
    shutil.copytree(folders[layout], copy)
    tensors = load_file(copy / "model.safetensors")
    needed = [name for name in tensors if "pooler" not in name]
    assert len(needed) == {"hub": 48, "native": 36, "fused": 28}[layout]
    for name in needed:
        save_file({other: t for other, t in tensors.items() if other != name}, copy / "model.safetensors")
        with pytest.raises(ModelError, match=rf"lacks 1 of {len(needed)} tensors .* needs: {name}\."):
            describe(str(copy))


def test_the_pooler_is_ignored_and_other_tensors_are_refused(folders, tmp_path, hub):
    copy = tmp_path / "copy"
    shutil.copytree(folders["hub"], copy)
    tensors = load_file(copy / "model.safetensors")
    without = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(tensors) - len(without) == 4
    save_file(without, copy / "model.safetensors")
    assert np.array_equal(load_encoder(str(copy), dtype="float32").encode(TEXTS), hub.encode(TEXTS))
    save_file(tensors | {"roberta.extra.weight": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors that family 'jina_v3' does not know: roberta\.extra\.weight"):
        describe(str(copy))


def test_a_wrong_number_of_adapters_is_refused(folders, tmp_path):
    copy = edit(folders["hub"], tmp_path / "copy", lora_adaptations=list(TASKS[:4]))
    with pytest.raises(ModelError, match=r"other shapes than its config\.json says"):
        describe(str(copy))


@pytest.mark.parametrize("layout", ["native", "fused"])
def test_a_missing_adapter_folder_is_named(folders, tmp_path, layout):
    copy = tmp_path / "copy"
    shutil.copytree(folders[layout], copy)
    shutil.rmtree(copy / "text_matching")
    with pytest.raises(ModelError, match="lacks the adapter folders text_matching"):
        describe(str(copy))
    fewer = edit(copy, tmp_path / "fewer", lora_adaptations=list(TASKS[:4]))
    assert describe(str(fewer)).tasks == TASKS[:4]
    (fewer / "separation" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"separation is not an adapter: it needs adapter_config\.json and"):
        describe(str(fewer))


def test_a_checkpoint_may_have_no_adapters(folders, tmp_path, hub):
    copy = edit(folders["fused"], tmp_path / "copy", lora_adaptations=[])
    encoder = load_encoder(str(copy), dtype="float32")
    assert encoder.spec.tasks == ()
    assert np.array_equal(encoder.encode(TEXTS), hub.encode(TEXTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "RoPE of type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "RoPE of type 'default' or scaled"),
        ({"num_attention_heads": 3}, "not a multiple of 2"),
        ({"lora_rank": None}, "lora_rank = None where a whole number"),
    ],
)
def test_a_config_of_another_architecture_is_refused(folders, tmp_path, settings, message):
    with pytest.raises(ModelError, match=message):
        describe(str(edit(folders["hub"], tmp_path / "copy", **settings)))


# Rotary base


@pytest.mark.slow
def test_the_rotary_base_is_read_from_the_config(folders, tmp_path):
    other = {
        "hub": edit(folders["hub"], tmp_path / "hub", rotary_emb_base=500.0),
        "native": edit(
            folders["native"], tmp_path / "native", rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
        ),
    }
    oracle = Oracle(other["native"])
    for layout, folder in other.items():
        encoder = load_encoder(str(folder), dtype="float32")
        rows = encoder.tokenizer.tokenize(TEXTS).ids.to_pylist()
        vectors = encoder.encode(TEXTS)
        np.testing.assert_allclose(vectors, oracle.vectors(rows, [None] * len(TEXTS)), atol=1e-4, rtol=0)
        published = load_encoder(str(folders[layout]), dtype="float32").encode(TEXTS)
        assert np.abs(vectors - published).max() > 1e-3


def test_a_native_config_without_a_base_uses_20000(folders, tmp_path, hub):
    copy = edit(folders["native"], tmp_path / "copy", rope_parameters=None)
    assert np.array_equal(load_encoder(str(copy), dtype="float32").encode(TEXTS), hub.encode(TEXTS))


# Lineage


def test_an_adapters_content_changes_the_lineage(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["native"], copy)
    before = describe(str(folders["native"]))
    assert describe(str(copy)).lineage() == before.lineage()
    weights = copy / "separation" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert describe(str(copy)).lineage() != before.lineage()
    assert replace(before, task="separation").lineage() != before.lineage()


def test_a_pickled_spec_loads_the_same_model(folders, hub):
    spec = pickle.loads(pickle.dumps(describe(str(folders["fused"]), dtype="float32", task="classification")))
    np.testing.assert_allclose(
        load_encoder(spec).encode(TEXTS), hub.encode(TEXTS, task="classification"), atol=1e-5, rtol=0
    )


def test_pre_cutting_a_long_text_changes_no_token(folders):
    spec = describe(str(folders["hub"]), max_tokens=64)
    long = "  ".join(SENTENCES * 10)
    whole = Tokenizer(replace(spec, max_tokens=100_000)).tokenize([long]).ids[0].as_py()
    cut = Tokenizer(spec).tokenize([long])
    assert cut.ids[0].as_py() == [*whole[:63], whole[-1]]
    assert cut.truncated.tolist() == [True]
