"""Tests of the torch modules for training against our encoder, transformers and finite differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from actors.encoders import describe
from actors.encoders.build import build_family
from actors.encoders.compute.device import Compute
from actors.encoders.packed import pack
from actors.encoders.pooling import pool as pool_encoded
from actors.encoders.twins import load_twin
from actors.encoders.twins.base import pack_padded, pool
from actors.errors import ConfigError, DataError, ModelError
from tests.checkpoints import (
    write_bert,
    write_jina_colbert_v2,
    write_jina_v1,
    write_jina_v2,
    write_jina_v3,
    write_jina_v4,
)
from tests.unit.encoders.jina_v2_reference import Reference

CPU = torch.device("cpu")
LENGTHS = np.array([7, 30, 3, 4, 4, 1, 12, 29, 2])
MODELS = {
    "bert": write_bert,
    "xlm-roberta": lambda folder: write_bert(
        folder, kind="xlm-roberta", tokenizer="byte_level", prefix="roberta.", dtype=torch.bfloat16
    ),
    "v1": lambda folder: write_jina_v1(folder, dtype=torch.float16),
    "v1, other name of the words": lambda folder: write_jina_v1(folder, words=("encoder.embed_tokens.weight",)),
    "v2 A": lambda folder: write_jina_v2(folder, prefix="bert.", dtype=torch.float16),
    "v2 B": lambda folder: write_jina_v2(folder, variant="B"),
}
# Models whose own weights are not trained: they have adapters.
FROZEN = {
    "v3 hub": lambda folder: write_jina_v3(folder, dtype=torch.float16),
    "v3 native": lambda folder: write_jina_v3(folder, layout="native"),
    "v3 fused": lambda folder: write_jina_v3(folder, layout="fused", theta=10_000.0),
    "v4": lambda folder: write_jina_v4(folder, vision=None, dtype=torch.bfloat16),
    "v4, new names": lambda folder: write_jina_v4(folder, vision=None, keys="new", nested=False),
}
TINY = {
    "bert": lambda folder: write_bert(folder, hidden=4, layers=1, inner=4, positions=8),
    "v1": lambda folder: write_jina_v1(folder, hidden=4, layers=1, heads=2, width=3, inner=4),
    "v2 A": lambda folder: write_jina_v2(folder, hidden=4, layers=1, heads=2, inner=4),
    "v2 B": lambda folder: write_jina_v2(folder, variant="B", hidden=4, layers=1, heads=2, inner=4),
    "v3": lambda folder: write_jina_v3(folder, hidden=4, layers=1, heads=2, inner=4),
    "v4": lambda folder: write_jina_v4(folder, vision=None, hidden=8, layers=1, heads=2, groups=1, inner=4),
}


def described(folder):
    """The spec of a checkpoint; v4 needs a task."""
    task = "text-matching" if "task_names" in json.loads((folder / "config.json").read_text()) else None
    return describe(str(folder), dtype="float32", task=task)


def random_ids(spec, lengths=LENGTHS):
    """Token ids that are not special, one flat row."""
    return np.random.default_rng(0).integers(5, spec.vocab_size, lengths.sum())


def padded(ids, lengths=LENGTHS):
    """The same as rows with padding, and their mask."""
    mask = torch.arange(int(lengths.max())) < torch.tensor(lengths)[:, None]
    rows = torch.zeros(mask.shape, dtype=torch.long)
    rows[mask] = torch.tensor(ids)
    return rows, mask.long()


def loss_of(vectors):
    """A number that depends on every entry differently."""
    return (vectors * torch.linspace(-1, 1, vectors.numel(), dtype=vectors.dtype).view_as(vectors)).sum()


def gradients(model):
    """The gradient of each parameter, by name."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=MODELS | FROZEN)
def spec(request, tmp_path):
    return described((MODELS | FROZEN)[request.param](tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_states_are_those_of_our_encoder(spec, order):
    lengths = np.sort(LENGTHS) if order == "sorted" else LENGTHS
    batch = pack(random_ids(spec), lengths, device=CPU)
    twin, encoder = load_twin(spec), build_family(spec, Compute(CPU, torch.float32))
    with torch.inference_mode():
        expected = encoder.forward(batch)
    states = twin(batch)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pool(twin, states, batch), pool_encoded(expected, batch, "mean"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("mode", "how"), [("pooling_mode_cls_token", "cls"), ("pooling_mode_lasttoken", "last")])
def test_vectors_are_pooled_as_the_repository_says(tmp_path, mode, how):
    spec = describe(str(write_bert(tmp_path, pooling={mode: True, "pooling_mode_mean_tokens": False})))
    twin, batch = load_twin(spec), pack(random_ids(spec), LENGTHS, device=CPU)
    states = twin(batch)
    assert torch.equal(pool(twin, states, batch), pool_encoded(states, batch, how))


@pytest.mark.slow
def test_rows_of_mixed_lengths_are_what_each_is_alone(spec):
    twin = load_twin(spec, dtype=torch.float64)
    rows, mask = padded(random_ids(spec))
    together = pack_padded(rows, mask)
    loss = loss_of(pool(twin, twin(together), together))
    loss.backward()
    found = gradients(twin)
    twin.zero_grad()
    alone = []
    for row, length in zip(rows, LENGTHS, strict=True):
        batch = pack_padded(row[None, :length], torch.ones(1, length))
        alone.append(pool(twin, twin(batch), batch))
    again = loss_of(torch.cat(alone))
    again.backward()
    torch.testing.assert_close(loss, again, atol=1e-10, rtol=0)
    assert found.keys() == twin.state_dict().keys()
    torch.testing.assert_close(found, gradients(twin), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_bert, "BertModel"),
        (lambda folder: write_bert(folder, kind="xlm-roberta", tokenizer="byte_level"), "XLMRobertaModel"),
        (write_jina_v1, "T5EncoderModel"),
    ],
)
def test_states_and_gradients_are_those_of_transformers(tmp_path, write, name):
    import transformers

    spec = describe(str(write(tmp_path)))
    twin = load_twin(spec, dtype=torch.float64)
    model = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = random_ids(spec)
    rows, mask = padded(ids)
    states = model(input_ids=rows, attention_mask=mask).last_hidden_state[mask.bool()]
    batch = pack_padded(rows, mask)
    # transformers' T5 norms have float32 statistics.
    atol = 1e-5 if name == "T5EncoderModel" else 1e-10
    torch.testing.assert_close(twin(batch), states, atol=atol, rtol=atol)
    loss_of(states).backward()
    loss_of(twin(batch)).backward()
    found = gradients(twin)
    torch.testing.assert_close(found, {name: gradients(model)[name] for name in found}, atol=atol, rtol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["A", "B"])
def test_gradients_of_v2_are_those_of_its_formulas(tmp_path, variant):
    spec = describe(str(write_jina_v2(tmp_path, variant=variant)))
    twin, reference = load_twin(spec, dtype=torch.float64), Reference(tmp_path)
    for weight in reference.w.values():
        weight.requires_grad_()
    ids = random_ids(spec)
    parts = np.split(ids, np.cumsum(LENGTHS)[:-1])
    states = torch.cat([reference.forward(part.tolist()) for part in parts])
    found = twin(pack(ids, LENGTHS, device=CPU))
    torch.testing.assert_close(found, states, atol=1e-7, rtol=0)  # slopes are float32
    loss_of(states).backward()
    loss_of(found).backward()
    expected = {name: reference.w[name].grad for name in twin.state_dict()}
    torch.testing.assert_close(gradients(twin), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_gradients_are_those_of_finite_differences(tmp_path, name):
    spec = described(TINY[name](tmp_path))
    twin = load_twin(spec, dtype=torch.float64)
    lengths = np.array([3, 2, 3, 1, 5])
    batch = pack(random_ids(spec, lengths), lengths, device=CPU)
    names, values = zip(*twin.named_parameters(), strict=True)

    def vectors(*parameters):
        states = torch.func.functional_call(twin, dict(zip(names, parameters, strict=True)), (batch,))
        return pool(twin, states, batch)

    assert torch.autograd.gradcheck(vectors, values, fast_mode=True)


@pytest.mark.slow
def test_products_in_bfloat16_change_vectors_little(spec):
    twin, batch = load_twin(spec), pack(random_ids(spec), LENGTHS, device=CPU)
    expected = pool(twin, twin(batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = pool(twin, twin(batch), batch)
    assert vectors.dtype == torch.float32
    assert torch.cosine_similarity(vectors, expected).min() > 0.99
    loss_of(vectors).backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(twin).values())
    assert all(gradient.isfinite().all() for gradient in gradients(twin).values())


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "v1"])
def test_a_row_longer_than_the_model_takes_is_refused(tmp_path, name):
    spec = describe(str(MODELS[name](tmp_path)))
    lengths = np.array([spec.max_tokens + 1])
    with pytest.raises(DataError, match=f"a row has {spec.max_tokens + 1} tokens"):
        load_twin(spec)(pack(random_ids(spec, lengths), lengths, device=CPU))


def test_a_family_without_a_twin_is_refused(tmp_path):
    spec = describe(str(write_jina_colbert_v2(tmp_path)), outputs=["multi"])
    with pytest.raises(ConfigError, match="family 'jina_colbert_v2', which cannot be trained; those that can are bert"):
        load_twin(spec)


def test_weights_that_changed_since_the_plan_are_refused(tmp_path):
    spec = describe(str(write_bert(tmp_path, hidden=32)))
    write_bert(tmp_path, hidden=16)
    with pytest.raises(ModelError, match="Put the same checkpoint on every machine"):
        load_twin(spec)
