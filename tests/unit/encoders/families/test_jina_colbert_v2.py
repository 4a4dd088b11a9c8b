from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.encoders import describe, load_encoder
from actors.encoders.finite import UnfitVectors
from actors.encoders.muvera import encode
from actors.encoders.settings import EncoderSettings
from actors.errors import ConfigError, ModelError
from actors.inputs import prepare_texts
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import SENTENCES, write_jina_colbert_v2
from tests.unit.encoders.jina_colbert_v2_oracle import reference

TEXTS = [*SENTENCES, "", "x", "...", SENTENCES[0] * 3]
OUTPUTS = ("dense", "multi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jina_colbert_v2(tmp_path_factory.mktemp("colbert") / "model", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(str(folder), dtype="float32", outputs=OUTPUTS)


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(folder, encoder, tmp_path):
    oracle = reference(folder, tmp_path / "copy")
    for task, theirs in (("passage", oracle.encode_document(TEXTS)), ("query", oracle.encode_query(TEXTS))):
        ours = encoder.encode_multi(TEXTS, task=task)
        assert [len(row) for row in ours] == [len(row) for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", ["passage", "query"])
def test_the_dense_vector_is_the_encoding_of_the_others(encoder, task):
    dense = encoder.encode(TEXTS, task=task)
    for vector, vectors in zip(dense, encoder.encode_multi(TEXTS, task=task), strict=True):
        np.testing.assert_allclose(vector, encode(vectors, query=task == "query"), atol=1e-5)
    assert encoder.dim == dense.shape[1] == encoder.spec.outputs[0].dim


def test_tasks_may_be_mixed(encoder):
    tasks = ["query" if number % 3 else None for number in range(len(TEXTS))]
    mixed = encoder.encode_multi(TEXTS, task=[task or "passage" for task in tasks])
    for text, task, vectors in zip(TEXTS, tasks, mixed, strict=True):
        np.testing.assert_allclose(vectors, encoder.encode_multi([text], task=task)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [64, 96])
def test_shorter_vectors_are_cut_before_they_are_normalized(folder, encoder, dim):
    whole = encoder.encode_multi(TEXTS)
    for long, short in zip(
        whole, load_encoder(str(folder), dtype="float32", outputs=OUTPUTS, dim=dim).encode_multi(TEXTS), strict=True
    ):
        cut = long[:, :dim]
        np.testing.assert_allclose(short, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)


def test_the_smaller_repositories_have_a_narrower_projection(tmp_path):
    spec = describe(str(write_jina_colbert_v2(tmp_path / "model", width=64)), outputs=("multi",))
    assert [(column.kind, column.dim) for column in spec.outputs] == [("multi", 64)]
    with pytest.raises(ConfigError, match=r"dim 96 is outside 1\.\.64"):
        describe(str(tmp_path / "model"), outputs=("multi",), dim=96)


# Tokens


def test_markers_follow_the_first_token_and_queries_have_32(folder):
    spec = describe(str(folder), outputs=("multi",), max_tokens=40)
    tokenizer = Tokenizer(spec)
    mask, query, document = 300, 301, 302
    plain = Tokenizer(describe(str(folder), outputs=("multi",))).tokenize(["a dog"], [None]).ids[0].as_py()
    texts, tasks = ["a dog", "a dog", SENTENCES[0] * 3, SENTENCES[0] * 3], ["passage", "query", "passage", "query"]
    tokens = tokenizer.tokenize(texts, tasks)
    short, asked, long, long_asked = tokens.ids.to_pylist()
    assert short == [plain[0], document, *plain[1:]]
    assert asked == [plain[0], query, *plain[1:], *[mask] * (32 - len(plain) - 1)]
    assert (len(long), len(long_asked), long[-1], long_asked[-1]) == (40, 32, plain[-1], plain[-1])
    assert tokens.truncated.tolist() == [False, False, True, True]


def test_a_query_is_cut_if_it_has_more_than_29_tokens_of_its_own(folder):
    tokenizer = Tokenizer(describe(str(folder), outputs=("multi",)))
    texts = ["x " * words for words in range(10, 20)]
    own = [len(ids) - 2 for ids in tokenizer.tokenize(texts, [None] * len(texts)).ids]
    tokens = tokenizer.tokenize(texts, ["query"] * len(texts))
    assert {len(ids) for ids in tokens.ids} == {32}
    assert tokens.truncated.tolist() == [count > 29 for count in own]
    assert {28, 29, 30, 31} & set(own)


def test_the_vectors_of_punctuation_and_of_the_prompt_can_be_left_out(folder, encoder):
    (plain,), (dotted,) = encoder.encode_multi(["a dog"]), encoder.encode_multi(["a dog ."])
    kept = load_encoder(str(folder), dtype="float32", outputs=("multi",), multi_keep="content")
    assert len(kept.encode_multi(["a dog"])[0]) == len(plain) - 2
    assert len(kept.encode_multi(["a dog ."])[0]) == len(dotted) - 2
    assert len(encoder.encode_multi(["..."], task="query")[0]) == 32
    assert len(dotted) - len(plain) == 1  # of the space before it


@pytest.mark.parametrize("task", ["passage", "query"])
def test_the_encoding_is_the_same_alone_and_in_a_table(folder, task):
    kept = load_encoder(str(folder), dtype="float32", outputs=OUTPUTS, multi_keep="content", task=task)
    dense, _ = kept.encode_rows(prepare_texts(kept.spec, ["a dog"])).outputs
    np.testing.assert_array_equal(kept.encode(["a dog"])[0], dense[0].values.to_numpy())


def test_a_text_of_which_nothing_is_kept_has_no_vector(folder, encoder):
    prompt = encoder.tokenizer.tokenize(["a dog"]).ids[0].as_py()
    settings = EncoderSettings(
        str(folder), outputs=OUTPUTS, prompt="a dog", multi_keep="content", max_tokens=len(prompt)
    )
    with pytest.raises(UnfitVectors, match="row 0 has no vector"):
        load_encoder(settings).encode_multi([" x x"])


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"makes many vectors a row.*Set encoder\.outputs to \[dense, multi\] or \[multi\]"),
        ({"outputs": ("multi",), "dim": 32}, "trained for dims 64, 96, 128"),
        ({"outputs": ("multi",), "adapters": {}, "task": "separation"}, "its tasks are query, passage"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        describe(str(folder), **settings)


def test_a_tokenizer_without_markers_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no token '\[QueryMarker\]'"):
        describe(str(write_jina_colbert_v2(tmp_path / "model", added=("<mask>",))), outputs=("multi",))


def test_the_lineage_names_the_encoding(encoder, folder):
    lineage = encoder.spec.lineage()
    assert (lineage["muvera"], lineage["dim"]) == ("muvera, 20 x 2^5 x 8, RandomState(42)", 128)
    assert "muvera" not in describe(str(folder), outputs=("multi",)).lineage()
