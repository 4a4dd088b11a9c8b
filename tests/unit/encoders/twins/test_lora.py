"""Adapters on a twin: PEFT's own computation, gradients of several adapters, and folders."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from actors.encoders import describe, load_encoder
from actors.encoders.twins import load_twin
from actors.encoders.twins.base import pack_padded, pool
from actors.encoders.twins.factors import LoraFactors, folder_factors, save_factors
from actors.encoders.twins.lora import add_lora, factors_of, start_factors, use_lora
from actors.errors import ConfigError, ModelError
from tests.checkpoints import SENTENCES, write_bert, write_jina_v2

NAMES = ("retrieval.query", "retrieval.passage")
KINDS = {
    "bert": write_bert,
    "xlm-roberta": lambda folder: write_bert(folder, kind="xlm-roberta"),
}
MODELS = {**KINDS, "v2 A": write_jina_v2, "v2 B": lambda folder: write_jina_v2(folder, variant="B")}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"), layers=1)


@pytest.fixture
def twin(bert):
    twin = load_twin(describe(str(bert)))
    add_lora(twin, NAMES, rank=2, alpha=6, seed=0)
    return twin


def draw(twin, name, seed=0):
    """Gives an adapter random factors, as if it were trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter(twin, name).values():
            parameter.normal_(std=0.3)


def adapter(twin, name):
    inside = f".task_{name.replace('.', '%2E')}."
    return {key: p for key, p in twin.named_parameters() if inside in f"{key}."}


def rows(twin, texts=SENTENCES):
    ids = load_encoder(twin.spec).tokenizer.tokenize(texts).ids
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids.to_pylist()], batch_first=True)
    lengths = torch.tensor([len(row) for row in ids.to_pylist()])
    return pack_padded(padded, torch.arange(padded.shape[1]) < lengths[:, None])


def vectors(twin, batch):
    return torch.nn.functional.normalize(pool(twin, twin(batch), batch), dim=1)


@pytest.mark.slow
def test_an_adapter_computes_what_peft_computes_on_transformers_class(folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    twin = load_twin(describe(str(folder)))
    add_lora(twin, ["legal"], rank=4, alpha=8, seed=0)
    draw(twin, "legal")
    save_factors(twin, factors_of(twin, "legal"), tmp_path / "legal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
        oracle = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path / "legal").eval()
    batch = rows(twin)
    states = twin(batch)
    for row in range(batch.rows):
        tokens = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        expected = oracle(input_ids=batch.ids[tokens][None].long()).last_hidden_state[0]
        torch.testing.assert_close(states[tokens], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_encoder_computes_what_a_twin_with_an_adapter_does(tmp_path, name):
    folder = MODELS[name](tmp_path / "model")
    twin = load_twin(describe(str(folder)))
    add_lora(twin, ["legal"], rank=4, alpha=8, seed=0)
    draw(twin, "legal")
    save_factors(twin, factors_of(twin, "legal"), tmp_path / "legal")
    encoder = load_encoder(str(folder), dtype="float32")
    encoder.adapters.load("legal", tmp_path / "legal")
    ours = encoder.encode(SENTENCES, task="legal")
    np.testing.assert_allclose(ours, vectors(twin, rows(twin)).detach(), atol=1e-5)
    assert np.abs(ours - encoder.encode(SENTENCES)).max() > 1e-2


def test_a_new_adapter_changes_nothing_and_its_seed_decides(bert):
    twin = load_twin(describe(str(bert)))
    batch = rows(twin)
    before = twin(batch)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    add_lora(twin, ["a"], rank=2, alpha=4, seed=0)
    assert torch.equal(torch.rand(1), expected)  # the numbers of the process go on as before
    torch.testing.assert_close(twin(batch), before)
    for seed, same in ((0, True), (1, False)):
        other = load_twin(describe(str(bert)))
        add_lora(other, ["a"], rank=2, alpha=4, seed=seed)
        assert torch.equal(next(iter(adapter(twin, "a").values())), next(iter(adapter(other, "a").values()))) == same


def test_two_adapters_of_one_loss_both_move_and_the_base_does_not(twin):
    batch = rows(twin)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    for name in NAMES:
        draw(twin, name, seed=len(name))
    drawn = {name: value.clone() for name, value in twin.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1.0)
    sides = []
    for name in NAMES:
        use_lora(twin, name)
        sides.append(vectors(twin, batch))
    (sides[0] @ sides[1].T).logsumexp(1).sum().backward()
    optimizer.step()
    after = twin.state_dict()
    moved = {name for name in after if not torch.equal(after[name], drawn[name])}
    assert moved == {name for name in after if ".lora_" in name}
    assert all(torch.equal(after[name], before[name]) for name in after if ".lora_" not in name)


def test_the_gradients_of_two_adapters_are_those_of_the_same_loss_alone(twin):
    """The trap: PEFT switches the first adapter's gradient off when the second one is chosen."""
    for name in NAMES:
        draw(twin, name, seed=len(name))
    batch = rows(twin)
    with torch.no_grad():
        fixed = []
        for name in NAMES:
            use_lora(twin, name)
            fixed.append(vectors(twin, batch))
    alone: dict[str, torch.Tensor] = {}
    for side, name in enumerate(NAMES):
        use_lora(twin, name)
        (vectors(twin, batch) * fixed[1 - side]).sum().backward()
        alone |= {key: p.grad.clone() for key, p in adapter(twin, name).items()}
    twin.zero_grad()
    sides = []
    for name in NAMES:
        use_lora(twin, name)
        sides.append(vectors(twin, batch))
    (sides[0] * sides[1]).sum().backward()
    for name in NAMES:
        for key, parameter in adapter(twin, name).items():
            torch.testing.assert_close(parameter.grad, alone[key])
            assert parameter.grad.abs().max() > 0


def test_the_base_and_each_adapter_are_chosen(twin):
    batch = rows(twin)
    for name in NAMES:
        draw(twin, name, seed=len(name))
    results: list[torch.Tensor] = []
    for chosen in (None, *NAMES, None):
        use_lora(twin, chosen)
        results.append(vectors(twin, batch))
    torch.testing.assert_close(results[0], results[3], rtol=0, atol=0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (results[one] - results[other]).abs().max() > 1e-2
    assert all(p.requires_grad == (".lora_" in name) for name, p in twin.named_parameters())


def test_two_names_are_two_adapters_whatever_they_are_made_of(bert):
    names = ("a.b", "a_b", "a%2Eb", "train", "keys")  # torch's containers take no dots and have such methods
    twin = load_twin(describe(str(bert)))
    add_lora(twin, names, rank=1, alpha=1, seed=0)
    assert len({float(factors_of(twin, name).pairs["encoder.layer.0.output.dense"][0].sum()) for name in names}) == 5


def test_a_saved_adapter_is_read_again(twin, tmp_path):
    draw(twin, NAMES[0])
    trained = factors_of(twin, NAMES[0])
    for folder in ("one", "two"):
        save_factors(twin, trained, tmp_path / folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    start = start_factors(twin, str(tmp_path / "one"))
    assert (start.rank, start.alpha) == (2, 6)
    other = load_twin(twin.spec)
    add_lora(other, ["legal"], rank=2, alpha=6, seed=9, starts=[start])
    again = factors_of(other, "legal")
    assert again.pairs.keys() == trained.pairs.keys()
    for module, pair in trained.pairs.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, again.pairs[module], strict=True))


def test_a_start_may_change_few_layers_and_a_table(bert):
    twin = load_twin(describe(str(bert)))
    words = twin.spec.vocab_size
    layer = "encoder.layer.0.output.dense"
    start = LoraFactors(
        2,
        4.0,
        {
            layer: (torch.ones(2, 64), torch.ones(32, 2)),
            "embeddings.word_embeddings": (torch.ones(2, words), torch.ones(32, 2)),
        },
    )
    add_lora(twin, ["a"], rank=2, alpha=4.0, seed=0, starts=[start])
    got = factors_of(twin, "a").pairs
    assert all(torch.equal(got[m][i], start.pairs[m][i]) for m in start.pairs for i in (0, 1))
    assert len(got) == 7
    assert not any(up.any() for module, (_, up) in got.items() if module not in start.pairs)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 6), (2, 4)])
def test_a_start_of_another_rank_or_scale_is_refused(twin, bert, rank, alpha):
    other = load_twin(describe(str(bert)))
    with pytest.raises(ConfigError, match=rf"with rank 2 and alpha 6, and the job has rank {rank} and alpha {alpha}"):
        add_lora(other, ["a"], rank=rank, alpha=alpha, seed=0, starts=[factors_of(twin, NAMES[0])])


def test_an_adapter_of_another_base_is_refused(twin, tmp_path):
    save_factors(twin, factors_of(twin, NAMES[0]), tmp_path / "legal")
    for number, write in enumerate((lambda at: write_bert(at, hidden=48), lambda at: write_bert(at, inner=96))):
        other = load_twin(describe(str(write(tmp_path / f"base{number}"))))
        with pytest.raises(ModelError, match="Use an adapter made for this model"):
            start_factors(other, str(tmp_path / "legal"))
        with pytest.raises(ModelError, match="Use an adapter made for this model"):
            folder_factors(other, tmp_path / "legal")
    with pytest.raises(ModelError, match="adapter 'nowhere': its path 'nowhere' is neither a directory"):
        start_factors(twin, "nowhere")
