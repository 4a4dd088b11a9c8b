"""Tests of unusual checkpoints: each gives the correct vectors or is refused with a message that names the fault."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.errors import ModelError
from tests.checkpoints import write_bert

TEXTS = ["the tide comes in", "rain falls in the hills"]
INDEX = "model.safetensors.index.json"
KIND = "sentence_transformers.models."
POOLING = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("whole") / "model", pooling=POOLING, max_tokens=62)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another training state of the same model."""
    return write_bert(tmp_path_factory.mktemp("other") / "model", seed=9) / "model.safetensors"


@pytest.fixture(scope="module")
def right(whole):
    return load_encoder(str(whole), dtype="float32").encode(TEXTS)


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def is_right(folder, right) -> None:
    np.testing.assert_allclose(load_encoder(str(folder), dtype="float32").encode(TEXTS), right, atol=1e-6, rtol=0)


def edit(path, **changes) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def rename(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


# Which files are the weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_old", "adapter_model", "model.fp16", "consolidated", "zzz", "aaa"])
def test_a_second_file_of_weights_changes_nothing(folder, other, right, name):
    before = describe(str(folder)).lineage()
    shutil.copy(other, folder / f"{name}.safetensors")
    is_right(folder, right)
    assert describe(str(folder)).lineage() == before


def test_one_file_of_another_name_is_read_and_several_are_refused(folder, other, right):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    is_right(folder, right)
    shutil.copy(other, folder / "more.safetensors")
    with pytest.raises(ModelError, match=r"2 files of weights .* more\.safetensors, weights\.safetensors"):
        describe(str(folder))


def test_a_broken_link_is_refused(folder, other):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")
    shutil.copy(other, folder / "model_old.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is not a file, or is a link to nothing"):
        describe(str(folder))


def test_the_index_takes_precedence_and_must_match_the_files(folder, other, right):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"part{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in ("part0.safetensors", "part1.safetensors"):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    for file in ("model.safetensors", "part2.safetensors"):
        shutil.copy(other, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    is_right(folder, right)
    for change, message in (
        ({names[0]: "part1.safetensors"}, rf"'{names[0]}' into part1\.safetensors, which is in part0\.safetensors"),
        ({"new": "part1.safetensors"}, r"'new' into part1\.safetensors, which is in none of its files"),
        ({"new": "part2.safetensors"}, r"in part\d\.safetensors and in part\d\.safetensors. One of them must go"),
        ({"new": "../part1.safetensors"}, "is not inside it"),
        ({"new": "gone.safetensors"}, r"lacks weight files that its index names: gone\.safetensors"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": {**places, **change}}))
        with pytest.raises(ModelError, match=message):
            describe(str(folder))
    (folder / INDEX).unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    for file in places.values():
        (folder / file).unlink(missing_ok=True)
    (folder / "part2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"one part of 2, and no model\.safetensors\.index\.json"):
        describe(str(folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model-00001-of-00002.bin", "only pickled weights"),
        ("tf_model.h5", r"only tf_model\.h5"),
        ("onnx/model.onnx", r"only onnx/model\.onnx"),
    ],
)
def test_files_of_other_formats_are_named_with_a_fix(folder, file, message):
    (folder / "model.safetensors").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{message}.*save_pretrained"):
        describe(str(folder))


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "it has 0 bytes"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")]
)
def test_invalid_content_of_a_weights_file_is_named(folder, data, message):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        describe(str(folder))


def test_a_folder_that_is_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has adapter_config\.json, model\.safetensors.*merge_and_unload"):
        describe(str(folder))


# Names of tensors


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "bert.", "roberta.", "model.", "module.", "0.auto_model.", "model.bert."])
@pytest.mark.parametrize("norms", [str, old_norms])
def test_old_names_and_prefixes_give_the_same_model(folder, right, prefix, norms):
    rename(folder, lambda tensors: {prefix + norms(name): tensor for name, tensor in tensors.items()})
    is_right(folder, right)


def test_a_tensor_under_two_names_is_refused(folder):
    gamma = "embeddings.LayerNorm.gamma"
    rename(folder, lambda tensors: {**tensors, gamma: torch.ones(32)})
    with pytest.raises(ModelError, match=rf"'{gamma}' and 'embeddings\.LayerNorm\.weight', two names"):
        describe(str(folder))


def test_integer_weights_are_refused(folder):
    name = "encoder.layer.0.output.dense.weight"
    rename(folder, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    with pytest.raises(ModelError, match=rf"{name} \(I8\)"):
        describe(str(folder))


# Settings


@pytest.mark.parametrize("value", [-1, 0, 2, "512", 62.5, True, [5]])
def test_an_invalid_length_is_refused_unless_the_user_gives_one(folder, value):
    edit(folder / "sentence_bert_config.json", max_seq_length=value)
    with pytest.raises(ModelError, match="has max_seq_length .*must be a whole number of 3 or more"):
        describe(str(folder))
    assert describe(str(folder), max_tokens=20).max_tokens == 20


@pytest.mark.parametrize(
    ("value", "tokenizer", "taken"), [(None, 20, 20), (None, 10**30, 64), (2**70, 20, 64), (30, 20, 30)]
)
def test_a_missing_length_is_the_tokenizers_or_the_models(folder, value, tokenizer, taken):
    edit(folder / "sentence_bert_config.json", max_seq_length=value)
    edit(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert describe(str(folder)).max_tokens == taken


def test_older_names_of_the_sentence_config_are_read(folder):
    (folder / "sentence_bert_config.json").rename(folder / "sentence_xlm-roberta_config.json")
    assert describe(str(folder)).max_tokens == 62


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"default_prompt_name": "p"}, "default_prompt_name 'p', and it has no prompts"),
        ({"prompts": {"q": "Q: "}, "default_prompt_name": "p"}, "default_prompt_name 'p', and its prompts are 'q'"),
        ({"prompts": {"a": 1}}, "texts by their names are needed"),
        ({"prompts": ["a"]}, "texts by their names are needed"),
    ],
)
def test_a_missing_default_prompt_is_named(folder, settings, message):
    edit(folder / "config_sentence_transformers.json", **settings)
    with pytest.raises(ModelError, match=message):
        describe(str(folder))


def test_default_prompts_built_into_sentence_transformers_are_accepted(folder, right):
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query")
    is_right(folder, right)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_decoder": True}, "is_decoder True, which makes it a decoder"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"model_type": "mpnet"}, "model_type 'mpnet'"),
        ({"vocab_size": 41}, r"word_embeddings\.weight \[76, 32\] instead of \[41, 32\]"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized .'gptq'."),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps -1.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan"),
    ],
)
def test_an_unsupported_config_is_refused_before_loading(folder, settings, message):
    edit(folder / "config.json", **settings)
    with pytest.raises(ModelError, match=message):
        describe(str(folder))


def modules(folder, *kinds: tuple[str, str]) -> None:
    listed = [{"idx": i, "name": str(i), "path": path, "type": KIND + kind} for i, (path, kind) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    "kind", ["StaticEmbedding", "CLIPModel", "Asym", "Router", "WordEmbeddings", "BoW", "MLMTransformer"]
)
def test_an_unsupported_first_module_is_named(folder, kind):
    (folder / "config.json").unlink()
    modules(folder, ("", kind))
    with pytest.raises(ModelError, match=rf"module of type 'sentence_transformers\.models\.{kind}' at place 0"):
        describe(str(folder))


@pytest.mark.parametrize("kind", ["Dense", "CNN", "LSTM", "SpladePooling", "LayerNorm", "Pooling", "Transformer"])
def test_an_additional_module_that_changes_vectors_is_named(folder, kind):
    modules(folder, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_more", kind))
    with pytest.raises(ModelError, match=rf"models\.{kind}' at place 2"):
        describe(str(folder))


def test_a_module_whose_folder_is_missing_is_named(folder):
    modules(folder, ("", "Transformer"), ("1_gone", "Pooling"))
    with pytest.raises(
        ModelError, match=r"Pooling module in the folder '1_gone', and .*1_gone/config\.json is not there"
    ):
        describe(str(folder))
    modules(folder, ("0_gone", "Transformer"), ("1_Pooling", "Pooling"))
    with pytest.raises(ModelError, match=r"its transformer in the folder '0_gone', and .*0_gone is not there"):
        describe(str(folder))
    modules(folder, ("", "Transformer"))
    with pytest.raises(ModelError, match="has no Pooling module"):
        describe(str(folder))


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": ["mean", "cls"]},
        {"pooling_mode": 3},
        {"pooling_mode": [["mean"]]},
        {"pooling_mode_mean_tokens": False},
    ],
)
def test_unsupported_poolings_are_named(folder, pooling):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match="asks for pooling .*supported is one of mean, cls, lasttoken"):
        describe(str(folder))


@pytest.mark.parametrize("modules", [3, "x", [3], {"0": {"type": "x"}}])
def test_modules_that_are_no_list_of_modules_are_refused(folder, modules):
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"modules\.json is not a list of modules"):
        describe(str(folder))


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("size", [0, -4, 2.0, True, None])
def test_a_size_that_is_none_is_named(folder, key, size):
    edit(folder / "config.json", **{key: size})
    with pytest.raises(ModelError, match=rf"config\.json has {key} = .* where a whole number of 1 or more is needed"):
        describe(str(folder))


@pytest.mark.parametrize("pooling", [{"pooling_mode": ["mean"]}, {"pooling_mode_mean_sqrt_len_tokens": True}, {}])
def test_poolings_with_the_direction_of_the_mean_are_read_as_mean(folder, right, pooling):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    is_right(folder, right)


def test_a_byte_order_mark_is_ignored(folder, right):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    is_right(folder, right)


def test_old_files_of_a_tokenizer_are_named(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, only vocab\.txt.*save_pretrained"):
        describe(str(folder))


# Special tokens that a text contains literally


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenizer", "pad"), [("bert", "word_piece", "[PAD]"), ("xlm-roberta", "byte_level", "<pad>")]
)
@pytest.mark.parametrize("lower", [False, True])
def test_literal_special_tokens_and_lower_case_match_sentence_transformers(tmp_path, kind, tokenizer, pad, lower):
    """Version 6 of sentence-transformers lower-cases in the tokenizer, after it has split off special tokens."""
    from sentence_transformers import SentenceTransformer

    folder = write_bert(tmp_path / "model", kind=kind, tokenizer=tokenizer, pooling=POOLING, max_tokens=62)
    edit(folder / "sentence_bert_config.json", do_lower_case=lower)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token=pad)
    texts = [
        "The Fox [SEP] jumps",
        "a [PAD] B",
        "[CLS][MASK] A",
        "<pad> A </s> B <S>",
        "A <pad><pad> b",
        "ΟΔΟΣ",
        "İstanbul",
        "Plain",
    ]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(load_encoder(str(folder), dtype="float32").encode(texts), expected, atol=1e-4, rtol=0)
