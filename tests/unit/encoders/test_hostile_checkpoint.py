"""Tests that a malicious or truncated checkpoint raises ModelError and nothing else."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.encoders import load_encoder
from actors.encoders.spec import describe
from actors.errors import ModelError, VectideError
from actors.text.tokenizer import Tokenizer
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.examples import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
# Where one file of a checkpoint names another one.
OUTSIDE = ("../outside.safetensors", "/etc/passwd", "..", "", "a\0b", "sub/../../outside.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def v4(tmp_path_factory):
    return write_jina_v4(tmp_path_factory.mktemp("v4"))


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def try_checkpoint(folder, task=None) -> bool:
    """Describes and uses a checkpoint as a run does.

    Returns:
        True if that succeeded, False if it raised an error of ours. Other errors are raised.
    """
    try:
        spec = describe(str(folder), dtype="float32", task=task)
        Tokenizer(spec).tokenize(["a text"])
        load_encoder(spec).encode(["a text"])
    except VectideError as error:
        message = str(error)
    else:
        return True
    assert len(message) < 2_000
    return False


def test_the_unchanged_checkpoint_is_accepted(folder):
    assert try_checkpoint(folder)


NAMES = ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")


@pytest.mark.slow
@examples(20)
@given(document=JSON)
@example(document={"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": -1}}})
@example(document={"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}})
@pytest.mark.parametrize("name", [*NAMES, "model.safetensors.index.json", "config_sentence_transformers.json"])
def test_a_replaced_json_file(whole, tmp_path_factory, name, document):
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(whole, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    try_checkpoint(folder)


@examples(40)
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_replaced_value_in_a_json_file(whole, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("part") / "model"
    shutil.copytree(whole, folder)
    document = json.loads((folder / name).read_text())
    parent, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(parent[key], dict) and parent[key] and len(parent[key]) < 20 and data.draw(st.booleans()):
        parent, key = parent[key], data.draw(st.sampled_from(sorted(parent[key])))
    parent[key] = data.draw(JSON)
    (folder / name).write_text(json.dumps(document))
    try_checkpoint(folder)


@pytest.mark.slow
@examples(60)
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "adapters/adapter_config.json"])
def test_a_replaced_value_in_a_v4_config(v4, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("part") / "model"
    shutil.copytree(v4, folder)
    document = json.loads((folder / name).read_text())
    parent = document
    if "text_config" in parent and data.draw(st.booleans()):
        parent = parent["text_config"]
    parent[data.draw(st.sampled_from(sorted(parent)))] = data.draw(JSON)
    (folder / name).write_text(json.dumps(document))
    try_checkpoint(folder, "retrieval.passage")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 5_000, b"nul"])
def test_bytes_that_are_not_json(folder, name, data):
    (folder / name).write_bytes(data)
    assert not try_checkpoint(folder)


def weights(header: object, body: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        weights(b"", size=2**63),
        weights(b"{}", size=99_999_999),
        weights(b"[" * 100_000),
        weights([]),
        weights({}),
        weights({"a": None}),
        weights({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}),
        weights({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}, b"\0" * 8),
        weights({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}),
        weights({"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 8]}}, b"\0" * 8),
        weights({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        weights({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}, b"\0" * 8),
        pickle.dumps({"a": 1}),
    ],
)
def test_bytes_that_are_not_weights(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError):
        describe(str(folder))


@examples(40)
@given(data=st.data())
def test_a_wrong_safetensors_header(whole, tmp_path_factory, data):
    """Offsets outside the file, overlapping or unordered; types and shapes that differ from the model's."""
    folder = tmp_path_factory.mktemp("lies") / "model"
    shutil.copytree(whole, folder)
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    name = data.draw(st.sampled_from(sorted(header)))
    numbers = st.integers(-(2**65), 2**65) | st.integers(-4, len(raw))
    change = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "shape": st.lists(numbers, max_size=3),
                "data_offsets": st.lists(numbers, min_size=2, max_size=2),
                "dtype": st.sampled_from(["F16", "F64", "BOOL", "F8_E4M3", "x", ""]),
            },
        )
    )
    header[name] = {**(header[name] if isinstance(header[name], dict) else {}), **change}
    (folder / "model.safetensors").write_bytes(weights(header, raw[8 + size :]))
    try_checkpoint(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_names_a_file_beside_the_folder(folder, name):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError):
        describe(str(folder))


def test_an_index_that_names_pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(ModelError):
        describe(str(folder))
