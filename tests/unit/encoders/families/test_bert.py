"""Tests of the BERT family against sentence-transformers (the real model) and transformers (tiny models)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.encoders import describe, load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.errors import DataError
from tests.checkpoints import SENTENCES, write_bert

TEXTS = [*SENTENCES, "", "x", "two words", SENTENCES[1] * 30, "word " * 300]


@pytest.fixture(scope="module")
def encoder(minilm):
    return load_encoder(str(minilm), dtype="float32")


@pytest.fixture(scope="module")
def expected(minilm):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu").encode(TEXTS, normalize_embeddings=True)


@pytest.mark.slow
def test_the_real_model_matches_sentence_transformers(encoder, expected):
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_bfloat16_is_within_its_tolerance(minilm, expected):
    encoder = Encoder(describe(str(minilm)), compute=Compute(torch.device("cpu"), torch.bfloat16))
    assert (encoder.encode(TEXTS) * expected).sum(1).min() >= 0.999


@pytest.mark.slow
def test_other_rows_and_order_change_no_vector(encoder):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5, rtol=0)
    shuffled = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(encoder.encode([TEXTS[i] for i in shuffled]), alone[shuffled], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenizer", "prefix", "dtype"),
    [
        ("bert", "letters", "", torch.float32),
        ("bert", "word_piece", "bert.", torch.float16),
        ("xlm-roberta", "byte_level", "roberta.", torch.float32),
        ("xlm-roberta", "byte_level", "", torch.bfloat16),
    ],
)
def test_token_states_match_transformers(tmp_path, kind, tokenizer, prefix, dtype):
    from transformers import AutoModel

    folder = write_bert(tmp_path / "model", kind=kind, tokenizer=tokenizer, prefix=prefix, dtype=dtype)
    encoder = load_encoder(str(folder), dtype="float32")
    plain = write_bert(tmp_path / "plain", kind=kind, tokenizer=tokenizer, dtype=dtype)
    model = AutoModel.from_pretrained(plain, dtype=torch.float32).eval()
    ids = encoder.tokenizer.tokenize(TEXTS).ids
    for states, row in zip(encoder.encode_token_states(ids), ids.to_pylist(), strict=True):
        with torch.inference_mode():
            wanted = model(torch.tensor([row])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("mode", "column"), [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1)])
def test_pooling_is_read_from_the_repository(tmp_path, mode, column):
    folder = write_bert(tmp_path, pooling={mode: True, "pooling_mode_mean_tokens": False}, max_tokens=20)
    encoder = load_encoder(str(folder), dtype="float32")
    ids = encoder.tokenizer.tokenize(TEXTS).ids
    states = np.stack([states[column] for states in encoder.encode_token_states(ids)])
    expected = states / np.linalg.norm(states, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_tokens(ids), expected, atol=1e-6, rtol=0)
    assert max(len(row) for row in ids.to_pylist()) == 20


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_row_longer_than_the_position_table_is_refused(tmp_path, kind):
    """On a GPU the lookup would end the process."""
    folder = write_bert(tmp_path, kind=kind, tokenizer="byte_level")
    encoder = load_encoder(str(folder), dtype="float32")
    limit = encoder.spec.max_tokens
    row = [7] * limit
    assert encoder.encode_tokens(pa.array([row], pa.list_(pa.int32()))).shape == (1, encoder.dim)
    with pytest.raises(DataError, match=f"has {limit + 1} tokens, this model has {limit} positions"):
        encoder.encode_tokens(pa.array([[*row, 7]], pa.list_(pa.int32())))
