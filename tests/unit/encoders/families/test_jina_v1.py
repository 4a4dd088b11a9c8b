from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.families.jina_v1 import bucket
from actors.errors import ConfigError, DataError, ModelError
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import SENTENCES, write_jina_v1
from tests.examples import examples

LONG = " ".join(SENTENCES * 4)
TEXTS = [*SENTENCES, "", "x", LONG]

PUBLISHED: dict[str, dict[str, Any]] = {
    "the encoder alone": {},
    "the whole T5": {"decoder": True, "words": ("shared.weight", "encoder.embed_tokens.weight")},
    "one name for the words": {"words": ("encoder.embed_tokens.weight",)},
    "16 bits": {"dtype": torch.float16},
}


@pytest.fixture(scope="module", params=PUBLISHED)
def folder(request, tmp_path_factory):
    return write_jina_v1(tmp_path_factory.mktemp("v1"), **PUBLISHED[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_jina_v1(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def encoder(plain):
    return load_encoder(str(plain), dtype="float32")


@torch.no_grad()
def expected_states(model, ids):
    return model(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.slow
def test_every_published_layout_matches_transformers(folder):
    from transformers import T5EncoderModel

    encoder = load_encoder(str(folder), dtype="float32")
    model = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = encoder.tokenizer.tokenize(TEXTS).ids
    states = [expected_states(model, ids) for ids in rows.to_pylist()]
    assert len(states[-1]) == 512
    for mine, theirs in zip(encoder.encode_token_states(rows), states, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=0)
    means = np.stack([state.mean(0) for state in states])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (32, 64), (16, 128), (8, 20)])
def test_distance_buckets_match_transformers(count, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(distance, num_buckets=count, max_distance=farthest)
    assert torch.equal(bucket(distance, count, farthest), theirs)


def test_the_end_token_is_added_and_pooled(encoder):
    rows = encoder.tokenizer.tokenize(["x", ""]).ids.to_pylist()
    assert [row[-1] for row in rows] == [1, 1]
    assert len(rows[1]) == 1
    (states,) = encoder.encode_token_states(pa.array(rows[:1], pa.list_(pa.int32())))
    mean = states.mean(0)
    np.testing.assert_allclose(encoder.encode(["x"])[0], mean / np.linalg.norm(mean), atol=1e-6, rtol=0)


@examples(25)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=10))
def test_order_and_other_rows_change_no_vector(encoder, texts):
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5, rtol=0)


@examples(40)
@given(st.text())
def test_any_text_has_a_finite_unit_vector(encoder, text):
    (vector,) = encoder.encode([text])
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_bfloat16_vectors_are_close(encoder):
    narrow = Encoder(encoder.spec, compute=Compute(torch.device("cpu"), torch.bfloat16))
    assert (narrow.encode(TEXTS) * encoder.encode(TEXTS)).sum(1).min() > 0.999


def test_the_limit_is_512_tokens(plain, encoder):
    assert encoder.spec.max_tokens == 512
    assert encoder.tokenizer.tokenize([LONG * 9]).truncated.tolist() == [True]
    with pytest.raises(ConfigError, match=r"max_tokens 513 is outside 3\.\.512"):
        describe(str(plain), max_tokens=513)
    with pytest.raises(DataError, match="has 513 tokens, family 'jina_v1' takes 512"):
        encoder.encode_tokens(pa.array([[5] * 513], pa.list_(pa.int32())))


def test_pre_cutting_a_long_text_changes_no_token(plain):
    spec = describe(str(plain), max_tokens=64)
    long = "\n ".join(SENTENCES * 10)
    whole = Tokenizer(replace(spec, max_tokens=100_000)).tokenize([long]).ids[0].as_py()
    assert Tokenizer(spec).tokenize([long]).ids[0].as_py() == [*whole[:63], 1]


def test_v1_has_no_tasks_adapters_or_shorter_dims(plain, encoder):
    assert (encoder.spec.tasks, encoder.spec.task, encoder.spec.prompt) == ((), None, "")
    with pytest.raises(ConfigError, match="is of family 'jina_v1', which takes no LoRA adapters"):
        _ = encoder.adapters
    with pytest.raises(ConfigError, match="was not trained for shorter vectors"):
        describe(str(plain), dim=16)
    assert describe(str(plain), dim=16, allow_untrained_dim=True).dim == 16


def test_a_checkpoint_without_any_one_tensor_is_refused(plain, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    tensors = load_file(copy / "model.safetensors")
    assert len(tensors) == 19
    for name in tensors:
        save_file({other: t for other, t in tensors.items() if other != name}, copy / "model.safetensors")
        with pytest.raises(ModelError, match=rf"lacks 1 of 19 tensors .* needs: {name}\."):
            describe(str(copy))


def test_t5_v1_1_is_refused(plain, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    config = json.loads((copy / "config.json").read_text()) | {"feed_forward_proj": "gated-gelu"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="feed_forward_proj 'gated-gelu'"):
        describe(str(copy))
