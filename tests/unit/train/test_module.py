"""The twin as a module of sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from actors.encoders import describe, load_encoder
from actors.encoders.twins.factors import save_factors
from actors.encoders.twins.lora import factors_of
from actors.errors import ConfigError
from pipeline.train.module import BASE, embedding_model
from tests.checkpoints import SENTENCES, write_bert

TASKS = ("ask", "answer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"), layers=1)


@pytest.fixture(scope="module")
def spec(folder):
    return describe(str(folder), dtype="float32")


@pytest.fixture
def model(spec):
    """A model with two adapters that give different vectors."""
    model = embedding_model(spec, tasks=TASKS, rank=2, alpha=4, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return model


def features(model, texts, task):
    return model.preprocess(texts, task=task)


def test_encode_gives_the_vectors_of_the_encoder(spec, folder):
    model = embedding_model(spec)
    encoder = load_encoder(str(folder), dtype="float32")
    np.testing.assert_allclose(model.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)
    prompted = load_encoder(str(folder), dtype="float32", prompt="q: ")
    np.testing.assert_allclose(model.encode(SENTENCES, prompt="q: "), prompted.encode(SENTENCES), atol=1e-5)
    assert model.get_embedding_dimension() == encoder.dim
    assert model.max_seq_length == spec.max_tokens
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_texts_are_tokenized_and_cut_as_the_encoder_does(spec):
    model = embedding_model(spec)
    texts = ["", "a", "words " * 100]
    found = model.preprocess(texts)
    rows = load_encoder(spec).tokenizer.tokenize(texts).ids.to_pylist()
    assert [
        ids[mask.bool()].tolist() for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)
    ] == rows
    assert found["input_ids"].shape == (3, spec.max_tokens)
    assert found["input_ids"].dtype == found["attention_mask"].dtype == found["task"].dtype == torch.int64


def test_the_order_of_the_rows_does_not_matter(model):
    texts = sorted(SENTENCES, key=len)
    mixed = [*texts[::2], *texts[1::2]]
    one, other = (model(features(model, each, "ask"))["sentence_embedding"] for each in (texts, mixed))
    for text, vector in zip(texts, one, strict=True):
        torch.testing.assert_close(vector, other[mixed.index(text)], atol=1e-6, rtol=0)


def test_no_padding_is_computed(model, monkeypatch):
    seen, forward = [], model[0].twin.forward

    def watched(batch):
        seen.append(batch)
        return forward(batch)

    monkeypatch.setattr(model[0].twin, "forward", watched)
    found = features(model, SENTENCES, "ask")
    model(found)
    (batch,) = seen
    assert len(batch.ids) == int(found["attention_mask"].sum()) < found["input_ids"].numel()
    assert (np.diff(batch.lengths) <= 0).all()


def test_the_task_chooses_the_adapter(model, spec):
    ask, answer = (model.encode(SENTENCES, task=task) for task in TASKS)
    assert np.abs(ask - answer).max() > 1e-2
    np.testing.assert_array_equal(model.encode(SENTENCES), ask)
    found = features(model, SENTENCES, "ask")
    found["task"].fill_(BASE)
    base = model(found)["sentence_embedding"].detach().numpy()
    np.testing.assert_allclose(base, load_encoder(spec).encode(SENTENCES), atol=1e-5)
    with pytest.raises(ConfigError, match="has no task 'legal': its tasks are ask, answer"):
        model.encode(SENTENCES, task="legal")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_gradients_of_two_adapters_are_the_uncached_ones(spec, dtype):
    texts = [" ".join(SENTENCES[i : i + 1 + i % 3]) for i in range(len(SENTENCES))]
    gradients: list[dict[str, torch.Tensor]] = []
    for cached in (False, True):
        model = embedding_model(spec, tasks=TASKS, rank=2, alpha=4, seed=0, dtype=dtype)
        with torch.no_grad():
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.3)
        columns = [features(model, texts, "ask"), features(model, texts[::-1], "answer")]
        loss = (
            CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
            if cached
            else MultipleNegativesRankingLoss(model)
        )
        assert isinstance(loss, CachedLossMixin) == cached
        value = loss(columns, None)
        value.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 2 * 2 * 6
    for name, gradient in gradients[0].items():
        assert gradient.dtype == dtype
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_autocast_to_bfloat16_gives_float32_vectors_near_the_exact_ones(model):
    exact = model(features(model, SENTENCES, "ask"))["sentence_embedding"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(features(model, SENTENCES, "ask"))["sentence_embedding"]
    assert rough.dtype == torch.float32
    assert 0.999 < float((exact * rough).sum(1).min().detach()) < 0.9999999
    rough.sum().backward()
    assert all(p.grad.isfinite().all() for n, p in model.named_parameters() if "task_ask" in n)


def test_a_start_is_where_the_training_begins(model, spec, tmp_path):
    save_factors(model[0].twin, factors_of(model[0].twin, "ask"), tmp_path / "ask")
    again = embedding_model(spec, tasks=["more"], rank=2, alpha=4, seed=7, start_from=[str(tmp_path / "ask")])
    np.testing.assert_allclose(again.encode(SENTENCES), model.encode(SENTENCES, task="ask"), atol=1e-6)


def test_saving_by_sentence_transformers_is_refused(model, tmp_path):
    with pytest.raises(NotImplementedError, match="in the layout of its checkpoint"):
        model.save_pretrained(str(tmp_path / "model"))
