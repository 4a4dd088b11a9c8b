from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.encoders import EncoderSettings, describe, load_encoder
from actors.errors import ConfigError, ModelError
from tests.checkpoints import write_bert, write_jina_v2


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bert(tmp_path / "model", pooling={"pooling_mode_mean_tokens": True}, max_tokens=64)


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def retensor(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_real_model_is_described(minilm):
    spec = describe(str(minilm))
    assert (spec.family, spec.hidden, spec.dim, spec.max_tokens, spec.pooling) == ("bert", 384, 384, 256, "mean")
    assert (spec.tasks, spec.task, spec.prompt, spec.normalize, spec.precision) == ((), None, "", True, "bfloat16")
    assert spec.query_side() == spec


@pytest.mark.slow
def test_describing_and_tokenizing_import_no_torch(minilm):
    code = (
        "import sys; from actors.encoders import describe; from actors.text.tokenizer import Tokenizer; import actors.batching\n"
        f"Tokenizer(describe({str(minilm)!r})).tokenize(['a'])\n"
        "print(*{'torch', 'transformers', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_a_spec_survives_pickling_and_its_lineage_is_json(folder):
    spec = describe(str(folder), dtype="float32")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert json.loads(json.dumps(spec.lineage())) == spec.lineage()
    assert str(folder) not in json.dumps(spec.lineage())


def test_settings_are_passed_whole_or_one_by_one(folder):
    settings = EncoderSettings(str(folder), max_tokens=10, dtype="float32")
    spec = describe(settings)
    assert spec == describe(str(folder), max_tokens=10, dtype="float32")
    assert load_encoder(settings).spec == spec
    for complete in (settings, spec):
        with pytest.raises(TypeError, match=r"dtype: the (settings|spec) of .* (are|is) complete"):
            load_encoder(complete, dtype="bfloat16")
    with pytest.raises(TypeError, match="unexpected keyword argument 'maxtokens'"):
        load_encoder(str(folder), maxtokens=10)


def test_a_copy_elsewhere_has_the_same_lineage(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    edit(tmp_path / "copy" / "config.json", transformers_version="9.9", _name_or_path="elsewhere")
    assert describe(str(folder)).lineage() == describe(str(tmp_path / "copy")).lineage()


def test_every_setting_that_changes_vectors_changes_the_lineage(folder, tmp_path):
    base = describe(str(folder)).lineage()
    assert describe(str(folder), max_tokens=10).lineage() != base
    assert describe(str(folder), dtype="float32").lineage() != base
    assert describe(str(folder), prompt="passage: ").lineage() != base
    assert describe(str(folder), dim=16, allow_untrained_dim=True).lineage() != base
    for file, change in (("config.json", {"layer_norm_eps": 1e-5}), ("tokenizer.json", {"normalizer": None})):
        copy = tmp_path / file
        shutil.copytree(folder, copy)
        edit(copy / file, **change)
        assert describe(str(copy)).lineage() != base
    other = write_bert(tmp_path / "other", pooling={"pooling_mode_mean_tokens": True}, max_tokens=64, seed=1)
    assert describe(str(other)).lineage() != base


def test_weights_that_change_in_place_are_hashed_again(folder):
    before = describe(str(folder)).weights_sha256
    retensor(folder, lambda tensors: tensors["embeddings.LayerNorm.bias"].add_(1))
    assert describe(str(folder)).weights_sha256 != before


def test_a_missing_tensor_is_named(folder):
    retensor(
        folder, lambda tensors: [tensors.pop(f"encoder.layer.1.output.dense.{kind}") for kind in ("weight", "bias")]
    )
    with pytest.raises(ModelError, match=r"lacks 2 of 37 tensors.*encoder\.layer\.1\.output\.dense\.weight"):
        describe(str(folder))


def test_a_tensor_of_another_shape_is_named(folder):
    retensor(folder, lambda tensors: tensors.update({"embeddings.LayerNorm.bias": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"embeddings\.LayerNorm\.bias \[3\] instead of \[32\]"):
        describe(str(folder))


def test_an_unknown_tensor_is_refused(folder):
    retensor(folder, lambda tensors: tensors.update({"encoder.layer.0.gate.weight": torch.zeros(3)}))
    with pytest.raises(
        ModelError, match=r"1 tensors that family 'bert' does not know: encoder\.layer\.0\.gate\.weight"
    ):
        describe(str(folder))


def test_a_worker_with_another_checkpoint_at_the_same_path_refuses(folder):
    spec = describe(str(folder))
    shutil.rmtree(folder)
    write_jina_v2(folder)
    with pytest.raises(ModelError, match="holds family 'jina_v2' of width 48 where the plan was made with 'bert'"):
        load_encoder(spec)


def test_v2_weights_with_a_bert_config_are_not_detected_as_bert(tmp_path):
    folder = write_jina_v2(tmp_path)
    retensor(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "gated_layers" in name])
    with pytest.raises(ModelError, match="is of no family that is known"):
        describe(str(folder))


def test_a_truncated_file_is_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="where its header promises"):
        describe(str(folder))
    weights.write_bytes(b"not a file of tensors")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        describe(str(folder))


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        describe(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors file"):
        describe(str(folder))


def test_weights_in_several_files_are_read_by_their_index(folder):
    one = load_encoder(str(folder), dtype="float32").encode(["the dog"])
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in parts.items():
        save_file({name: tensors[name] for name in kept}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, kept in parts.items() for name in kept}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (load_encoder(str(folder), dtype="float32").encode(["the dog"]) == one).all()
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks weight files that its index names: b\.safetensors"):
        describe(str(folder))


def test_modules_that_would_change_vectors_are_refused(folder):
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    path.write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"module of type 'sentence_transformers\.models\.Dense'"):
        describe(str(folder))


def test_an_unknown_pooling_is_refused(folder):
    edit(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(ModelError, match="supported is one of mean, cls, lasttoken"):
        describe(str(folder))


def test_named_prompts_of_a_repository_become_tasks(folder):
    prompts = {"query": "query: ", "document": "passage: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    spec = describe(str(folder), task="document")
    assert (spec.prompt, spec.query_side().task, spec.query_side().prompt) == ("passage: ", "query", "query: ")
    assert spec.query_side().query_side() == spec.query_side()
    assert describe(str(folder)).query_side().prompt == "query: "
    assert describe(str(folder), task="query", prompt="Q: ").query_side().prompt == "Q: "
    encoder = load_encoder(spec)
    mixed = encoder.encode(["the dog", "the dog"], task=["query", "document"])
    assert mixed[0] == pytest.approx(encoder.encode(["the dog"], task="query")[0], abs=1e-5)
    assert mixed[1] == pytest.approx(encoder.encode(["the dog"])[0], abs=1e-5)
    assert abs(mixed[0] - mixed[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 40}, "dim 40 is outside 1..32"),
        ({"dim": 16}, "not trained for shorter vectors"),
        ({"max_tokens": 2}, "max_tokens 2 is outside 3..64"),
        ({"task": "retrieval"}, "it has no tasks"),
        ({"dtype": "float8"}, "dtype 'float8' is not known"),
        ({"adapters": ["legal"]}, r"adapters is \['legal'\]; it must be adapters by name"),
        ({"adapters": {"legal": 3}}, "the adapter 'legal' is 3; it must be a path or a URL"),
        ({"adapters": {"legal": {"path": None}}}, "path of the adapter 'legal' is None; it must be a path or a URL"),
        (
            {"adapters": {"legal": {"path": "a", "promt": "x"}}},
            "the adapter 'legal' is .*none but these keys: path, prompt",
        ),
        ({"adapters": {"legal": {"prompt": "x"}}}, "the adapter 'legal' is .*a dict with `path`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        describe(str(folder), **settings)


def test_a_missing_model_is_refused_with_a_fix(tmp_path):
    with pytest.raises(ModelError, match="neither a directory on this machine nor a hub id"):
        describe(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="could not be fetched from the hub"):
        describe("nobody/no-such-model-at-all")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        describe(str(tmp_path))


def test_a_missing_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        describe(str(folder))


def test_another_activation_is_refused(folder):
    edit(folder / "config.json", hidden_act="relu")
    with pytest.raises(ModelError, match="hidden_act 'relu'"):
        load_encoder(str(folder))
