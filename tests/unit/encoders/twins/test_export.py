"""Tests of trained checkpoints: our encoder and sentence-transformers load them with the trained vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.encoders.packed import pack
from actors.encoders.twins import load_twin
from actors.encoders.twins.base import pool
from actors.encoders.twins.export import save_checkpoint
from tests.checkpoints import SENTENCES, write_bert, write_jina_v1, write_jina_v2
from tests.checkpoints.files import write_modules
from tests.unit.encoders.twins.test_twins import MODELS

MEAN = {"embedding_dimension": 32, "pooling_mode": "mean"}


def train(folder):
    """A twin of the checkpoint with other weights, and its vectors of the sentences."""
    twin = load_twin(describe(str(folder)))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    encoder = load_encoder(str(folder), dtype="float32")
    rows = encoder.tokenizer.tokenize(SENTENCES).ids
    batch = pack(
        rows.flatten().to_numpy(), np.array([len(row) for row in rows.to_pylist()]), device=torch.device("cpu")
    )
    vectors = torch.nn.functional.normalize(pool(twin, twin(batch), batch)).detach().numpy()
    assert np.abs(vectors - encoder.encode(SENTENCES)).max() > 0.01  # the weights did change
    return twin, vectors


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_our_encoder_loads_what_was_trained(tmp_path, name):
    twin, vectors = train(MODELS[name](tmp_path / "base"))
    save_checkpoint(twin, tmp_path / "trained")
    np.testing.assert_allclose(
        load_encoder(str(tmp_path / "trained"), dtype="float32").encode(SENTENCES), vectors, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["bert", "v1"])
def test_sentence_transformers_loads_what_was_trained(tmp_path, kind):
    from sentence_transformers import SentenceTransformer

    base = tmp_path / "base"
    if kind == "bert":
        write_bert(base, tokenizer="word_piece", pooling=MEAN, max_tokens=20)
    else:
        write_jina_v1(base)
        write_modules(base, MEAN)
    twin, vectors = train(base)
    save_checkpoint(twin, tmp_path / "trained")
    model = SentenceTransformer(str(tmp_path / "trained"), device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), vectors, atol=1e-5, rtol=0)


def test_names_and_other_tensors_are_those_of_the_base(tmp_path):
    base = write_bert(tmp_path / "base", prefix="bert.", dtype=torch.float16)
    twin, _ = train(base)
    save_checkpoint(twin, tmp_path / "trained")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "trained"))
    assert new.keys() == old.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name].to(old[name].dtype))}
    assert changed == {f"bert.{name}" for name in twin.state_dict()}
    assert {str(new[name].dtype) for name in changed} == {"torch.float32"}
    assert new["bert.pooler.dense.weight"].dtype == torch.float16


def test_a_base_of_16_bits_says_float32_in_its_config(tmp_path):
    base = write_jina_v2(tmp_path / "base", dtype=torch.float16)
    config = json.loads((base / "config.json").read_text()) | {"torch_dtype": "float16"}
    (base / "config.json").write_text(json.dumps(config))
    twin, _ = train(base)
    save_checkpoint(twin, tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config.json").read_text()) == config | {"torch_dtype": "float32"}


def test_a_second_copy_of_the_words_is_not_left_behind(tmp_path):
    base = write_jina_v1(tmp_path / "base", decoder=True, words=("shared.weight", "encoder.embed_tokens.weight"))
    twin, _ = train(base)
    save_checkpoint(twin, tmp_path / "trained")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "trained"))
    assert old.keys() - new.keys() == {"encoder.embed_tokens.weight"}
    decoder = [name for name in new if name.startswith("decoder.")]
    assert decoder
    assert all(torch.equal(old[name], new[name]) for name in decoder)


def test_modules_in_folders_of_their_own_are_carried_over(tmp_path):
    """The layout of sentence-transformers' first releases: the transformer is not in the root."""
    base = write_bert(tmp_path / "base" / "0_Transformer", max_tokens=20)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(["Transformer", "Pooling"])
    ]
    root = base.parent
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
    for stale in ("README.md", "0_Transformer/pytorch_model.bin", "0_Transformer/model.safetensors.index.json.bak"):
        (root / stale).write_text("of the base")
    twin, vectors = train(root)
    save_checkpoint(twin, tmp_path / "trained")
    written = {str(path.relative_to(tmp_path / "trained")) for path in (tmp_path / "trained").rglob("*.*")}
    assert written == {
        "modules.json",
        "0_Transformer/config.json",
        "0_Transformer/model.safetensors",
        "0_Transformer/sentence_bert_config.json",
        "0_Transformer/tokenizer.json",
        "1_Pooling/config.json",
    }
    np.testing.assert_allclose(
        load_encoder(str(tmp_path / "trained"), dtype="float32").encode(SENTENCES), vectors, atol=1e-5, rtol=0
    )


def test_old_names_of_norms_and_shards_are_read_and_written_as_one_file(tmp_path):
    base = write_bert(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    twin, vectors = train(base)
    save_checkpoint(twin, tmp_path / "trained")
    assert load_file(tmp_path / "trained" / "model.safetensors").keys() == tensors.keys()
    np.testing.assert_allclose(
        load_encoder(str(tmp_path / "trained"), dtype="float32").encode(SENTENCES), vectors, atol=1e-5, rtol=0
    )
