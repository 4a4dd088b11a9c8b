"""Adapters of v3 and v4: their starts, PEFT's own computation and gradients, and the published layouts."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from actors.encoders import describe, load_encoder
from actors.encoders.lora.published import own_rank
from actors.encoders.packed import pack
from actors.encoders.settings import AdapterSettings
from actors.encoders.twins import load_twin
from actors.encoders.twins.base import pool
from actors.encoders.twins.export_lora import export_adapters
from actors.encoders.twins.factors import LoraFactors, folder_factors, modules_of, published_factors, save_factors
from actors.encoders.twins.lora import add_lora, factors_of, start_factors
from actors.errors import ConfigError, ModelError
from tests.checkpoints import SENTENCES, write_bert, write_jina_v3, write_jina_v4
from tests.checkpoints.jina_v3 import TASKS, write_peft
from tests.unit.encoders.jina_v3_oracle import Oracle as V3Oracle
from tests.unit.encoders.jina_v4_oracle import Oracle as V4Oracle
from tests.unit.encoders.jina_v4_oracle import split_adapters
from tests.unit.encoders.twins.test_twins import loss_of

BOTH = ("dense", "multi")


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    """One model in 16-bit files, as published, in two layouts."""
    root = tmp_path_factory.mktemp("v3")
    return {
        layout: write_jina_v3(root / layout, layout=layout, layers=1, dtype=torch.float16)
        for layout in ("hub", "native")
    }


@pytest.fixture(scope="module")
def v4(tmp_path_factory):
    return write_jina_v4(tmp_path_factory.mktemp("v4"), layers=1, dtype=torch.bfloat16)


def v3_twin(folder, **settings):
    return load_twin(describe(str(folder)), **settings)


def v4_twin(folder, outputs=BOTH, **settings):
    return load_twin(describe(str(folder), task="text-matching", outputs=outputs), **settings)


def trained(twin, start=None, *, rank=4, alpha=1.0):
    """The factors of an adapter that has moved from its start; it is in use in the twin."""
    add_lora(twin, ["a"], rank=rank, alpha=alpha, seed=0, starts=[start] if start else [])
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                moved = parameter + 0.2 * torch.randn(parameter.shape, generator=random)
                parameter.copy_(moved.float())  # files are float32
    return factors_of(twin, "a")


def tokens_of(spec, texts=SENTENCES):
    """The tokens of each text, without a prompt."""
    return load_encoder(spec).tokenizer.tokenize(texts, [None] * len(texts)).ids.to_pylist()


def packed(rows):
    return pack(np.concatenate(rows), np.array([len(row) for row in rows]), device=torch.device("cpu"))


def vectors_of(twin, texts=SENTENCES):
    batch = packed(tokens_of(twin.spec, texts))
    return normalize(pool(twin, twin(batch), batch)).detach().numpy()


def equal(one: LoraFactors, other: LoraFactors) -> bool:
    return (one.rank, one.alpha, one.pairs.keys()) == (other.rank, other.alpha, other.pairs.keys()) and all(
        torch.equal(a, b) for module in one.pairs for a, b in zip(one.pairs[module], other.pairs[module], strict=True)
    )


def quietly(load, *args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        return load(*args, **settings)


# Starts


def test_each_layout_of_v3_has_the_same_adapters_to_start_from(v3):
    hub, native = (v3_twin(v3[layout]) for layout in ("hub", "native"))
    starts = {task: start_factors(hub, task) for task in TASKS}
    for task, start in starts.items():
        assert (start.rank, start.alpha, len(start.pairs)) == (4, 1.0, 6)
        assert equal(start, start_factors(native, task))
    assert not equal(starts[TASKS[0]], starts[TASKS[1]])


def test_the_adapters_of_v4_are_a_start_under_both_names(v4):
    twin = v4_twin(v4)
    start = published_factors(twin, "code")
    assert (start.rank, start.alpha, len(start.pairs)) == (4, 8.0, 8)
    assert equal(start, start_factors(twin, "code"))
    assert equal(start, start_factors(twin, "code.passage"))
    dense = published_factors(v4_twin(v4, ("dense",)), "code")
    assert start.pairs.keys() - dense.pairs.keys() == {"multi_vector_projector"}


def test_adapters_that_are_trained_together_each_have_their_start(v3):
    twin = v3_twin(v3["hub"])
    starts = [published_factors(twin, task) for task in TASKS[:2]]
    add_lora(twin, TASKS[:2], rank=4, alpha=1.0, seed=0, starts=starts)
    assert [equal(factors_of(twin, task), start) for task, start in zip(TASKS, starts, strict=False)] == [True, True]
    assert not equal(*starts)


def test_a_start_that_the_model_does_not_have_is_refused(v3, tmp_path):
    with pytest.raises(ConfigError, match=r"no task 'legal': its tasks are retrieval\.query"):
        published_factors(v3_twin(v3["hub"]), "legal")
    merged = write_jina_v4(tmp_path, layers=1, vision=None, merged="code")
    twin = load_twin(describe(str(merged), task="query"))
    with pytest.raises(ModelError, match="has no adapter for 'query' to start from"):
        published_factors(twin, "query")


def test_the_rank_and_alpha_of_a_checkpoints_adapters_are_known(v3, v4, tmp_path):
    assert [own_rank(describe(str(folder))) for folder in v3.values()] == [(4, 1.0), (4, 1.0)]
    assert own_rank(describe(str(v4), task="text-matching")) == (4, 8.0)
    assert own_rank(describe(str(write_bert(tmp_path)))) is None


def test_a_folder_whose_query_and_key_have_other_down_factors_is_refused(v3, tmp_path):
    twin = v3_twin(v3["hub"])
    save_factors(twin, published_factors(twin, "separation"), tmp_path / "same")
    factors = load_file(tmp_path / "same" / "adapter_model.safetensors")
    assert equal(folder_factors(twin, tmp_path / "same"), published_factors(twin, "separation"))
    factors["base_model.model.layers.0.self_attn.k_proj.lora_A.weight"] *= 2
    folder = write_peft(tmp_path / "other", factors)
    with pytest.raises(ModelError, match=r"changes the 3 parts of 'encoder\.layers\.0\.mixer\.Wqkv' by different down"):
        folder_factors(twin, folder)


def test_a_folder_that_changes_only_the_values_leaves_query_and_key(v3, tmp_path):
    twin = v3_twin(v3["native"])
    down, up = published_factors(twin, "separation").pairs["encoder.layers.0.mixer.Wqkv"]
    stem = "base_model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    folder = write_peft(tmp_path, {stem.format("A"): down.clone(), stem.format("B"): up[64:].clone()})
    got = folder_factors(twin, folder).pairs["encoder.layers.0.mixer.Wqkv"]
    assert torch.equal(got[0], down)
    assert torch.equal(got[1], torch.cat([torch.zeros(64, 4), up[64:]]))


# PEFT's own computation


@pytest.mark.parametrize("layout", ["hub", "native"])
def test_states_and_gradients_of_a_v3_adapter_are_those_of_peft(v3, tmp_path, layout):
    from peft import PeftModel
    from transformers import JinaEmbeddingsV3Model

    twin = v3_twin(v3[layout], dtype=torch.float64)
    save_factors(twin, trained(twin, published_factors(twin, "separation")), tmp_path)
    base = JinaEmbeddingsV3Model.from_pretrained(v3["native"], dtype=torch.float64)
    model = quietly(PeftModel.from_pretrained, base, tmp_path, is_trainable=True).double().eval()
    rows = tokens_of(twin.spec)[:3]
    check_against(twin, rows, [model(torch.tensor([row])).last_hidden_state[0] for row in rows], model)


def test_states_and_gradients_of_a_v4_adapter_are_those_of_peft(v4, tmp_path):
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    twin = v4_twin(v4, dtype=torch.float64)
    save_factors(twin, trained(twin, published_factors(twin, "code"), alpha=8.0), tmp_path)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(v4, dtype=torch.float64)
    base.multi_vector_projector = torch.nn.Linear(32, 8)
    tensors = load_file(v4 / "model.safetensors")
    base.load_state_dict({key: t for key, t in tensors.items() if "projector" in key}, strict=False)
    model = quietly(PeftModel.from_pretrained, base, tmp_path, is_trainable=True).double().eval()
    rows = tokens_of(twin.spec)[:3]
    states = [base.model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    # RMS norms of transformers round to float32, and gradients have the errors of all of them.
    check_against(twin, rows, states, model, multi=base.multi_vector_projector, atol=1e-4)


def check_against(twin, rows, states, model, *, multi=None, atol=1e-9):
    """Compares states, the vectors of tokens, and the gradient of each factor; one of the twin may be several of PEFT's."""
    batch = packed(rows)
    expected, found = torch.cat(states), twin(batch)
    if multi is not None:
        expected, found = torch.cat([expected, multi(expected)], 1), torch.cat([found, twin.multi(found)], 1)
    torch.testing.assert_close(found, expected, atol=atol, rtol=atol)
    loss_of(expected).backward()
    loss_of(found).backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if ".lora_" in name}
    compared = 0
    for module in factors_of(twin, "a").pairs:
        parts = [f"base_model.model.{part}" for part in twin.parts_of(module)]
        layer = twin.get_submodule(module)
        if module.startswith("embeddings."):
            downs, ups = ([theirs[f"{part}.lora_embedding_{x}.default"] for part in parts] for x in "AB")
            down, up = layer.lora_embedding_A["task_a"], layer.lora_embedding_B["task_a"]
        else:
            downs, ups = ([theirs[f"{part}.lora_{x}.default.weight"] for part in parts] for x in "AB")
            down, up = layer.lora_A["task_a"].weight, layer.lora_B["task_a"].weight
        torch.testing.assert_close(down.grad, sum(downs), atol=atol, rtol=atol)
        torch.testing.assert_close(up.grad, torch.cat(ups), atol=atol, rtol=atol)
        compared += 2 * len(parts)
    assert compared == len(theirs)
    assert all(p.grad is None for name, p in twin.named_parameters() if ".lora_" not in name)


# The layout of v3's hub


def test_the_hubs_layout_holds_what_was_trained(v3, tmp_path):
    twin = v3_twin(v3["hub"])
    factors = trained(twin, published_factors(twin, "retrieval.query"))
    adapters = {"retrieval.query": factors, "legal": factors}
    out = export_adapters(twin, adapters, tmp_path / "out", prompts={"legal": "Law: "})
    encoder = load_encoder(str(out), dtype="float32")
    assert encoder.spec.tasks == (*TASKS, "legal")
    assert encoder.spec.prompts["retrieval.query"].startswith("Represent the query")
    for task in ("retrieval.query", "legal"):
        expected = vectors_of(twin, [encoder.spec.prompts[task] + text for text in SENTENCES])
        np.testing.assert_allclose(encoder.encode(SENTENCES, task=task), expected, atol=1e-5, rtol=0)
    before = load_encoder(str(v3["hub"]), dtype="float32")
    for other in (None, *TASKS[1:]):
        assert np.array_equal(encoder.encode(SENTENCES, task=other), before.encode(SENTENCES, task=other))
    assert np.abs(encoder.encode(SENTENCES, task=TASKS[0]) - before.encode(SENTENCES, task=TASKS[0])).max() > 1e-2


def test_other_tasks_and_tensors_of_the_hubs_file_keep_their_bits(v3, tmp_path):
    twin = v3_twin(v3["hub"])
    adapters = {"separation": trained(twin), "legal": trained(v3_twin(v3["hub"]))}
    export_adapters(twin, adapters, tmp_path)
    old, new = (load_file(folder / "model.safetensors") for folder in (v3["hub"], tmp_path))
    assert old.keys() == new.keys()
    stacked = {name for name in old if ".lora_" in name or name.endswith(("lora_A", "lora_B"))}
    assert len(stacked) == 14
    for name in old:
        if name not in stacked:
            assert torch.equal(old[name], new[name])
            assert old[name].dtype == new[name].dtype
            continue
        assert new[name].shape == (6, *old[name].shape[1:])
        same = [k for k in range(5) if torch.equal(new[name][k], old[name][k].float())]
        # An adapter of all tasks has factors for the pooler, which no vector depends on.
        assert same == ([0, 1, 2, 3, 4] if "pooler" in name else [0, 1, 3, 4])
        if "embeddings" in name or "pooler" in name:
            assert not new[name][5].any()  # the new adapter changes no table
    config, base = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, v3["hub"]))
    assert config.pop("lora_adaptations") == [*TASKS, "legal"]
    assert config.pop("task_instructions") == {**base.pop("task_instructions"), "legal": ""}
    assert base.pop("lora_adaptations") == list(TASKS)
    assert config == base


def test_a_replaced_task_leaves_the_config_as_it_is(v3, tmp_path):
    twin = v3_twin(v3["hub"])
    export_adapters(twin, {"separation": trained(twin)}, tmp_path)
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / file).read_bytes() == (v3["hub"] / file).read_bytes()


def test_weights_in_several_files_keep_them(v3, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(v3["hub"], base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + ('fc1' in name)}-of-00002.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: t for name, t in tensors.items() if files[name] == file}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    twin = v3_twin(base)
    factors = trained(twin)
    out = export_adapters(twin, {"separation": factors}, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    encoder = load_encoder(str(out), dtype="float32")
    np.testing.assert_allclose(encoder.encode(SENTENCES, task="separation"), vectors_of(twin), atol=1e-5, rtol=0)


# v3 with PEFT folders


@pytest.mark.slow
def test_transformers_and_our_encoder_load_the_native_layout(v3, tmp_path):
    twin = v3_twin(v3["native"])
    factors = trained(twin, published_factors(twin, "separation"), rank=4)
    out = export_adapters(twin, {"text-matching": factors, "legal-de": factors}, tmp_path, prompts={"legal-de": "L: "})
    encoder = load_encoder(str(out), dtype="float32")
    assert (encoder.spec.tasks, encoder.spec.prompts["legal-de"]) == ((*TASKS, "legal-de"), "L: ")
    oracle = quietly(V3Oracle, out, legal_de=out / "legal_de")
    rows, expected = tokens_of(twin.spec), vectors_of(twin)
    np.testing.assert_allclose(encoder.encode(SENTENCES, task="text-matching"), expected, atol=1e-5, rtol=0)
    for task in ("text-matching", "legal-de"):
        np.testing.assert_allclose(oracle.vectors(rows, [task] * len(rows)), expected, atol=1e-5, rtol=0)
    for task in TASKS[:4]:
        name = task.replace(".", "_").replace("-", "_")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / name / file).read_bytes() == (v3["native"] / name / file).read_bytes()


def test_a_folder_of_another_rank_fits_the_native_layout(v3, tmp_path):
    twin = v3_twin(v3["native"])
    factors = trained(twin, rank=2, alpha=8.0)
    encoder = load_encoder(str(export_adapters(twin, {"separation": factors}, tmp_path)), dtype="float32")
    np.testing.assert_allclose(encoder.encode(SENTENCES, task="separation"), vectors_of(twin), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["hub", "native"])
def test_an_adapter_of_v3_may_stay_beside_its_base(v3, tmp_path, layout):
    twin = v3_twin(v3[layout])
    save_factors(twin, trained(twin, published_factors(twin, "separation")), tmp_path)
    adapters = {"legal": AdapterSettings(str(tmp_path))}
    encoder = load_encoder(str(v3[layout]), dtype="float32", adapters=adapters, task="legal")
    np.testing.assert_allclose(encoder.encode(SENTENCES), vectors_of(twin), atol=1e-5, rtol=0)


# The layout of v4


@pytest.mark.slow
def test_the_file_of_v4_holds_what_was_trained(v4, tmp_path):
    twin = v4_twin(v4)
    factors = trained(twin, published_factors(twin, "retrieval"), alpha=8.0)
    out = export_adapters(twin, {"retrieval.query": factors, "legal": factors}, tmp_path / "out")
    encoder = load_encoder(str(out), dtype="float32", task="legal.query", outputs=BOTH)
    assert encoder.spec.tasks[-2:] == ("legal.query", "legal.passage")
    assert (encoder.spec.prompt, encoder.spec.prompts["legal.passage"]) == ("Query: ", "Passage: ")
    texts = [f"Query: {text}" for text in SENTENCES]
    for task in ("legal.query", "retrieval.query"):
        np.testing.assert_allclose(encoder.encode(SENTENCES, task=task), vectors_of(twin, texts), atol=1e-5, rtol=0)
    batch = packed(tokens_of(twin.spec, texts))
    many = normalize(twin.multi(twin(batch))).detach().numpy()
    np.testing.assert_allclose(np.concatenate(encoder.encode_multi(SENTENCES)), many, atol=1e-5, rtol=0)
    before = load_encoder(str(v4), dtype="float32", task="code.query", outputs=BOTH)
    for task in ("code.query", "text-matching"):
        assert np.array_equal(encoder.encode(SENTENCES, task=task), before.encode(SENTENCES, task=task))
    folders = split_adapters(out, tmp_path / "split")
    rows = tokens_of(twin.spec, texts)
    oracle = quietly(V4Oracle, out, folders)
    np.testing.assert_allclose(
        oracle.vectors(rows, ["retrieval"] * len(rows)), vectors_of(twin, texts), atol=1e-5, rtol=0
    )


def test_other_adapters_of_v4_and_its_weights_keep_their_bits(v4, tmp_path):
    twin = v4_twin(v4)
    export_adapters(twin, {"code": trained(twin, alpha=8.0)}, tmp_path)
    old, new = (load_file(folder / "adapters" / "adapter_model.safetensors") for folder in (v4, tmp_path))
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name].float(), new[name].float())}
    assert changed == {name for name in old if ".code." in name}
    for file in ("model.safetensors", "adapters/adapter_config.json", "preprocessor_config.json"):
        assert (tmp_path / file).read_bytes() == (v4 / file).read_bytes()


def test_an_adapter_of_one_vector_a_row_keeps_the_projectors_factors(v4, tmp_path):
    twin = v4_twin(v4, ("dense",))
    factors = trained(twin, alpha=8.0)
    assert not hasattr(twin, "multi_vector_projector")
    out = export_adapters(twin, {"code": factors, "legal": factors}, tmp_path)
    old, new = (load_file(folder / "adapters" / "adapter_model.safetensors") for folder in (v4, out))
    stem = "base_model.model.multi_vector_projector.lora_{}.{}.weight"
    for factor in "AB":
        assert torch.equal(old[stem.format(factor, "code")], new[stem.format(factor, "code")])
        assert not new[stem.format(factor, "legal")].any()
    # A plan with many vectors a row takes the checkpoint too.
    encoder = load_encoder(str(out), dtype="float32", task="legal.query", outputs=BOTH)
    texts = [f"Query: {text}" for text in SENTENCES]
    np.testing.assert_allclose(encoder.encode(SENTENCES), vectors_of(twin, texts), atol=1e-5, rtol=0)


def test_an_adapter_of_v4_may_stay_beside_its_base(v4, tmp_path):
    twin = v4_twin(v4)
    save_factors(twin, trained(twin, rank=2), tmp_path)
    encoder = load_encoder(str(v4), dtype="float32", task="text-matching", outputs=BOTH)
    encoder.adapters.load("legal", tmp_path)
    np.testing.assert_allclose(encoder.encode(SENTENCES, task="legal"), vectors_of(twin), atol=1e-5, rtol=0)


# What is refused


def test_a_rank_or_alpha_that_the_layout_does_not_hold_is_refused(v3, v4, tmp_path):
    twin = v3_twin(v3["hub"])
    with pytest.raises(
        ConfigError, match=r"rank 2 and alpha 1, and all .* Train with train\.rank: 4 and train\.alpha: 1,"
    ):
        export_adapters(twin, {"separation": trained(twin, rank=2)}, tmp_path)
    twin = v4_twin(v4)
    with pytest.raises(
        ConfigError, match=r"rank 4 and alpha 1, and all .* Train with train\.rank: 4 and train\.alpha: 8,"
    ):
        export_adapters(twin, {"code": trained(twin)}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_adapters_without_a_place_in_the_layout_are_refused(v3, v4, tmp_path):
    out, nothing = tmp_path / "out", LoraFactors(4, 8.0, {})
    with pytest.raises(ConfigError, match=r"retrieval\.query, retrieval\.passage share an adapter"):
        export_adapters(v4_twin(v4), {"retrieval.query": nothing, "retrieval.passage": nothing}, out)
    merged = write_jina_v4(tmp_path / "merged", layers=1, vision=None, merged="code")
    with pytest.raises(ConfigError, match="merged into its weights and no file of adapters"):
        export_adapters(load_twin(describe(str(merged), task="query")), {"code": nothing}, out)
    with pytest.raises(ConfigError, match="'text-matching' and 'text.matching' have one folder, 'text_matching'"):
        export_adapters(v3_twin(v3["native"]), {"text.matching": nothing}, out)
    with pytest.raises(ConfigError, match="takes no LoRA adapters"):
        export_adapters(load_twin(describe(str(write_bert(tmp_path / "bert")))), {"a": nothing}, out)
    with pytest.raises(ConfigError, match="is the folder of the model that was trained"):
        export_adapters(v3_twin(v3["hub"]), {}, v3["hub"])
    assert not out.exists()


def test_every_linear_layer_and_table_of_a_twin_has_a_place_in_files(v3, v4):
    assert {len(targets) for targets in modules_of(v3_twin(v3["hub"])).values()} == {1, 3}
    twin = v4_twin(v4)
    add_lora(twin, ["a"], rank=2, alpha=2.0, seed=0)
    assert modules_of(twin) == modules_of(v4_twin(v4))
