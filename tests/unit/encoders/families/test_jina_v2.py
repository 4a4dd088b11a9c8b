from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.encoders import describe, load_encoder
from actors.encoders.alibi import slopes
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.errors import ConfigError, ModelError
from tests.checkpoints import SENTENCES, write_jina_v2
from tests.examples import examples
from tests.unit.encoders.jina_v2_reference import Reference, slope

TEXTS = [*SENTENCES, "", "x", SENTENCES[0] * 4]

# Published combinations of variant, name prefix, tokenizer, heads and file type, scaled down.
PUBLISHED: dict[str, dict[str, Any]] = {
    "small-en": {"variant": "A", "heads": 8, "hidden": 64, "inner": 128},
    "base-en": {"variant": "A", "heads": 12},
    "base-en, as the masked model": {"variant": "A", "heads": 12, "prefix": "bert."},
    "base-de": {"variant": "A", "tokenizer": "byte_level", "dtype": torch.float16},
    "base-zh": {"variant": "A", "tokenizer": "white_space", "dtype": torch.float16},
    "base-code": {"variant": "B", "tokenizer": "byte_level"},
    "base-code, as the masked model": {"variant": "B", "tokenizer": "byte_level", "prefix": "bert."},
}


@pytest.fixture(scope="module", params=PUBLISHED)
def folder(request, tmp_path_factory):
    return write_jina_v2(tmp_path_factory.mktemp("model"), **PUBLISHED[request.param])


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return write_jina_v2(tmp_path_factory.mktemp("code"), variant="B", tokenizer="byte_level")


@pytest.mark.slow
def test_every_published_layout_matches_the_reference(folder):
    encoder = load_encoder(str(folder), dtype="float32")
    ids = encoder.tokenizer.tokenize(TEXTS).ids
    reference = Reference(folder)
    expected = np.stack([reference.vector(row) for row in ids.to_pylist()])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4, rtol=0)
    for states, row in zip(encoder.encode_token_states(ids), ids.to_pylist(), strict=True):
        np.testing.assert_allclose(states, reference.states(row), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_bfloat16_is_within_its_tolerance(folder):
    spec = describe(str(folder))
    wide = load_encoder(str(folder), dtype="float32").encode(TEXTS)
    narrow = Encoder(spec, compute=Compute(torch.device("cpu"), torch.bfloat16)).encode(TEXTS)
    assert (wide * narrow).sum(1).min() >= 0.999


@pytest.mark.slow
def test_other_rows_and_order_change_no_vector(folder):
    encoder = load_encoder(str(folder), dtype="float32")
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5, rtol=0)
    shuffled = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(encoder.encode([TEXTS[i] for i in shuffled]), alone[shuffled], atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [4, 8, 12])
def test_slopes_are_in_the_published_order(heads):
    assert slopes(heads) == pytest.approx([slope(head, heads) for head in range(heads)], abs=0)


@pytest.mark.parametrize(("variant", "prefix"), [("A", ""), ("A", "bert."), ("B", ""), ("B", "bert.")])
def test_the_variant_is_detected_by_tensor_names(tmp_path, variant, prefix):
    spec = describe(str(write_jina_v2(tmp_path, variant=variant, prefix=prefix)))
    assert (spec.family, spec.variant) == ("jina_v2", variant)


def test_the_limit_is_8192_in_every_revision(tmp_path):
    folder = write_jina_v2(tmp_path, max_tokens=512, pooling={"pooling_mode_mean_tokens": True})
    assert describe(str(folder)).max_tokens == 8192
    assert describe(str(folder), max_tokens=512).max_tokens == 512
    with pytest.raises(ConfigError, match=r"max_tokens 8193 is outside 3\.\.8192"):
        describe(str(folder), max_tokens=8193)


def test_shorter_vectors_are_refused_without_training(code):
    with pytest.raises(ConfigError, match="not trained for shorter vectors"):
        describe(str(code), dim=16)
    encoder = load_encoder(str(code), dim=16, allow_untrained_dim=True, dtype="float32")
    full = load_encoder(str(code), dtype="float32").encode(TEXTS)[:, :16]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6, rtol=0)


def test_another_feed_forward_type_is_refused(tmp_path):
    folder = write_jina_v2(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"geglu"', '"reglu"'))
    with pytest.raises(ModelError, match="feed_forward_type 'reglu'"):
        describe(str(folder))


@pytest.mark.slow
def test_the_bias_of_a_long_text_takes_linear_memory(tmp_path):
    """Checks memory: with 12 heads and 4,096 tokens a dense bias would take 768 MiB; views of one row per head take 400 KB."""
    encoder = load_encoder(str(write_jina_v2(tmp_path, layers=1)), dtype="float32")
    ids = pa.array([np.random.default_rng(0).integers(5, 300, 4096).tolist()], pa.list_(pa.int32()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        encoder.encode_tokens(ids)
    allocations = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(allocations) < 64 * 2**20


@pytest.mark.slow
@given(st.text(st.characters(), max_size=60))
@examples(60)
def test_any_text_has_a_finite_unit_vector(any_text_encoder, text):
    vector = any_text_encoder.encode([text])[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module", params=["word_piece", "byte_level", "white_space"])
def any_text_encoder(request, tmp_path_factory):
    return load_encoder(str(write_jina_v2(tmp_path_factory.mktemp("any"), tokenizer=request.param)), dtype="float32")
