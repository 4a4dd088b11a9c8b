"""Many vectors a row from v4, compared with transformers' own classes and PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from actors.encoders import describe, encoder, load_encoder
from actors.encoders.clusters import cluster
from actors.encoders.compute import linear
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.families.jina_v4_layout import adapter_of
from actors.encoders.finite import NO_DIRECTION, NOT_FINITE, UnfitVectors
from actors.errors import ConfigError, ModelError
from actors.inputs import load_preparer, prepare_texts
from actors.schema import INPUT_IDS
from actors.text.chunks import resolve
from tests.checkpoints import SENTENCES, write_bert, write_jina_v4
from tests.checkpoints.jina_v3 import write_peft
from tests.checkpoints.jina_v4 import TASKS, edit
from tests.unit.encoders.families.test_jina_v4_pictures import prepare, random_pixels
from tests.unit.encoders.jina_v4_oracle import Oracle, split_adapters

BOTH = ("dense", "multi")
PASSAGE: dict[str, Any] = {"task": "retrieval.passage", "dtype": "float32"}
PIXELS = [random_pixels(grid) for grid in ((4, 5), (2, 2), (9, 6))]
MIXED = [SENTENCES[0], PIXELS[0], "x", PIXELS[1], "", "  two spaces", "5 apples", PIXELS[2], SENTENCES[1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jina_v4(tmp_path_factory.mktemp("v4") / "model", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def main(folder):
    return load_encoder(describe(str(folder), outputs=BOTH, **PASSAGE).seeing())


@pytest.fixture(scope="module")
def oracle(folder, tmp_path_factory):
    return Oracle(folder, split_adapters(folder, tmp_path_factory.mktemp("split")))


def many_of(encoder: Encoder, rows: list[Any], tasks: Sequence[str | None] | None = None) -> list[Any]:
    """Returns the many vectors of texts and pixels as the pipeline gets them."""
    encoded = encoder.encode_rows(prepare(encoder, rows, tasks))
    assert not encoded.reasons
    return [np.float32(each).reshape(-1, 8) for each in encoded.outputs[-1].to_pylist()]


def assert_close(actual, expected, *, atol=1e-5):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


# Numbers


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_texts_and_pictures_match_transformers_and_peft(main, oracle, task):
    ids = prepare(main, MIXED, [task] * len(MIXED))[INPUT_IDS].to_pylist()
    seen = [None if isinstance(row, str) else row for row in MIXED]
    expected = [oracle.many(*row) for row in zip(ids, [adapter_of(task)] * len(ids), seen, strict=True)]
    assert_close(many_of(main, MIXED, [task] * len(MIXED)), expected, atol=1e-4)
    assert_close(main.encode_multi(MIXED, task=task), expected, atol=1e-4)


def test_one_pass_gives_both_outputs(main, folder):
    alone = load_encoder(describe(str(folder), **PASSAGE).seeing())
    before = main.stats.micro_batches
    encoded = main.encode_rows(prepare(main, MIXED))
    assert main.stats.micro_batches == before + 1
    expected = alone.encode_rows(prepare(alone, MIXED)).outputs[0]
    np.testing.assert_array_equal(encoded.outputs[0].flatten(), expected.flatten())
    assert [str(array.type) for array in encoded.outputs] == [
        "fixed_size_list<item: float>[32]",
        "list<item: fixed_size_list<item: float>[8]>",
    ]
    np.testing.assert_array_equal(main.encode(SENTENCES), alone.encode(SENTENCES))


def test_mixed_tasks_and_other_rows_change_no_vector(main):
    tasks = [TASKS[number % len(TASKS)] for number in range(len(MIXED))]
    together = many_of(main, MIXED, tasks)
    assert_close(together, [many_of(main, [row], [task])[0] for row, task in zip(MIXED, tasks, strict=True)])
    assert_close(main.encode_multi(MIXED, task=tasks), together)
    assert np.abs(together[0] - many_of(main, MIXED[:1])[0]).max() > 0.1


def test_many_vectors_alone_have_no_dense_one_beside_them(main, folder):
    alone = load_encoder(str(folder), outputs=("multi",), **PASSAGE)
    (many,) = alone.encode_rows(prepare_texts(alone.spec, SENTENCES)).outputs
    assert (len(many), alone.dim) == (len(SENTENCES), 8)
    assert_close(alone.encode_multi(SENTENCES), main.encode_multi(SENTENCES))
    assert_close(main.encode_multi(["who?"]), alone.encode_multi(["who?"]))
    assert alone.encode_multi([]) == []
    with pytest.raises(ConfigError, match="was loaded for outputs multi: use encode_multi, or load it with dense"):
        alone.encode(SENTENCES)


def test_the_projector_computes_in_float32(main, folder):
    narrow = Encoder(main.spec, compute=Compute(torch.device("cpu"), torch.bfloat16))
    states: list[torch.Tensor] = []
    forward = narrow.family._states  # type: ignore[attr-defined]

    def keeping(*arguments: Any) -> torch.Tensor:
        states.append(forward(*arguments))
        return states[-1]

    narrow.family._states = keeping  # type: ignore[attr-defined]
    (vectors,) = many_of(narrow, SENTENCES[:1])
    weight, bias = (
        load_file(folder / "model.safetensors")[f"multi_vector_projector.{kind}"] for kind in ("weight", "bias")
    )
    factors = load_file(folder / "adapters" / "adapter_model.safetensors")
    down, up = (factors[f"base_model.model.multi_vector_projector.lora_{end}.retrieval.weight"] for end in "AB")
    assert states[0].dtype == torch.bfloat16
    product = states[0].double() @ (weight.double() + 2 * up.double() @ down.double()).T + bias.double()
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(product, dim=1).numpy(), atol=2e-6)
    assert min((vectors * many_of(main, SENTENCES[:1])[0]).sum(1)) > 0.99


def test_an_adapter_merged_into_the_weights_gives_the_same_vectors(folder, main, monkeypatch):
    monkeypatch.setattr(linear, "_can_pack", lambda compute: False)
    monkeypatch.setattr(encoder, "fuses", lambda device: True)
    merged = Encoder(main.spec, compute=main.compute, one_task=True)
    assert merged.family.adapters.route is not None  # type: ignore[attr-defined]
    assert_close(many_of(merged, MIXED), many_of(main, MIXED))
    with pytest.raises(ConfigError, match="loaded for task 'retrieval.passage' alone"):
        merged.encode_multi(["x"], task="text-matching")


@pytest.mark.parametrize("changes_projector", [True, False])
def test_an_added_adapter_may_change_the_projector(folder, tmp_path, changes_projector):
    generator = torch.Generator().manual_seed(0)
    outputs = {f"model.language_model.layers.{i}.self_attn.q_proj": 32 for i in (0, 1)}
    factors = {}
    for name, width in (outputs | ({"multi_vector_projector": 8} if changes_projector else {})).items():
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(width, 4, generator=generator)
    added = write_peft(tmp_path / "added", factors, r=4, lora_alpha=4)
    loaded = load_encoder(str(folder), outputs=BOTH, **PASSAGE)
    loaded.adapters.load("mine", added)
    ids = loaded.tokenizer.tokenize(SENTENCES, ["mine"] * len(SENTENCES)).ids.to_pylist()
    expected = Oracle(folder, {"mine": added})
    assert_close(loaded.encode_multi(SENTENCES, task="mine"), [expected.many(row, "mine") for row in ids], atol=1e-4)


# Which vectors are kept


def test_content_leaves_out_the_vectors_of_prompts(main):
    lean = Encoder(replace(main.spec, multi_keep="content"), compute=main.compute, family=main.family)
    wholes = iter(main.tokenizer.tokenize_whole([row for row in MIXED if isinstance(row, str)]))
    expected = []
    for row, vectors in zip(MIXED, many_of(main, MIXED), strict=True):
        if isinstance(row, str):
            expected.append(vectors[next(wholes).prefix :])
        else:
            ids = prepare(main, [row])[INPUT_IDS][0].as_py()
            place = main.tokenizer.tokenize(["<|image_pad|>"], [None]).ids[0][0].as_py()
            expected.append(vectors[np.flatnonzero(np.array(ids) == place)])
    assert [len(each) for each in expected if not len(each)] == [0]  # the text without content
    assert_close(many_of(lean, MIXED), expected)
    texts = Encoder(replace(lean.spec, modality="text"), compute=main.compute, family=main.family)
    rows = prepare_texts(texts.spec, SENTENCES)
    assert texts.encode_rows(rows).outputs[1] == lean.encode_rows(prepare(lean, SENTENCES)).outputs[1]
    tasks = [TASKS[number % len(TASKS)] for number in range(len(MIXED))]
    assert_close(
        many_of(lean, MIXED, tasks), [many_of(lean, [row], [task])[0] for row, task in zip(MIXED, tasks, strict=True)]
    )


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("keep", ["all", "content"])
def test_pools_merge_the_vectors_of_pictures_only(main, factor, keep):
    pooled, whole = (
        Encoder(replace(main.spec, multi_keep=keep, multi_pool=pool), compute=main.compute, family=main.family)
        for pool in (factor, None)
    )
    before = len(load_preparer(main.spec)._before) if keep == "all" else 0  # type: ignore[attr-defined]
    for row, vectors, all_vectors in zip(MIXED, pooled.encode_multi(MIXED), whole.encode_multi(MIXED), strict=True):
        if isinstance(row, str):
            np.testing.assert_array_equal(vectors, all_vectors)
            continue
        count = row.shape[0] * row.shape[1] // 28**2
        clusters = count // factor
        np.testing.assert_array_equal(vectors[:before], all_vectors[:before])
        np.testing.assert_array_equal(vectors[before + clusters :], all_vectors[before + count :])
        pool = HierarchicalTokenPooling(pool_factor=factor, num_protected_tokens=0)
        expected = pool.pool_one(torch.from_numpy(all_vectors[before : before + count].copy())).numpy()
        actual = vectors[before : before + clusters]
        np.testing.assert_allclose(actual[np.lexsort(actual.T)], expected[np.lexsort(expected.T)], atol=1e-6)


def test_clusters_of_few_equal_or_opposite_vectors(main):
    unit = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(cluster(unit[:1], 2), unit[:1])
    np.testing.assert_array_equal(cluster(unit[:0], 2), unit[:0])
    np.testing.assert_array_equal(cluster(np.stack([unit[0], -unit[0]]), 2), unit[:1])
    np.testing.assert_array_equal(cluster(unit[[0, 0, 0, 0, 0, 0]], 2), unit[:1])
    np.testing.assert_array_equal(cluster(unit[[1, 0, 1, 0]], 2), unit[[1, 0]])


# Rows that cannot be kept


def test_a_row_with_one_unusable_vector_is_named_and_the_others_stay(main, monkeypatch):
    expected = many_of(main, MIXED)
    forward = main.family.forward_multi
    spoilt = {1: torch.nan, 5: 0.0}  # a picture and a text

    def spoiling(batch):
        hidden, vectors = forward(batch)
        for place, row in enumerate(batch.numbers):
            if int(row) in spoilt:
                vectors[int(batch.lengths[: place + 1].sum()) - 1] = spoilt[int(row)]
        return hidden, vectors

    monkeypatch.setattr(main.family, "forward_multi", spoiling)
    encoded = main.encode_rows(prepare(main, MIXED))
    assert encoded.reasons == {1: NOT_FINITE, 5: NO_DIRECTION}
    for row in (0, 2, 3, 4, 6, 7, 8):
        assert_close([np.float32(encoded.outputs[1][row].as_py())], [expected[row]])
    with pytest.raises(UnfitVectors, match="row 1 has no vector: its vector is not finite"):
        main.encode_multi(MIXED)


# Settings and checkpoints


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": ()}, r"encoder\.outputs is \[\]; name dense or multi or both"),
        ({"outputs": ("multi", "multi")}, "name dense or multi or both, each once"),
        ({"outputs": ("sparse",)}, r"encoder\.outputs is \['sparse'\]"),
        ({"multi_pool": 2}, r"encoder\.multi_pool is 2, .*outputs does not name multi. Add multi there"),
        ({"multi_keep": "content"}, r"encoder\.multi_keep is content, .*outputs does not name multi"),
        ({"outputs": ("multi",), "multi_keep": "some"}, "'some' is not known; use one of all, content"),
        ({"outputs": ("multi",), "multi_pool": 4}, "multi_pool 4 is not known; use 2 or 3"),
        ({"outputs": ("multi",), "dim": 8}, r"encoder\.dim 8 shortens the dense vector, .* names multi only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        describe(str(folder), **settings, **PASSAGE)


def test_models_without_a_projector_refuse_many_vectors(tmp_path, folder):
    merged = write_jina_v4(tmp_path / "merged", merged="code")
    for path, task in ((write_bert(tmp_path / "bert"), None), (merged, "passage")):
        with pytest.raises(
            ConfigError,
            match=r"names multi, and .* has no projector for many vectors a row\. .* or jinaai/jina-colbert-v2",
        ):
            describe(str(path), task=task, outputs=("multi",))
    with pytest.raises(ConfigError, match=r"was loaded for outputs dense; load it with multi in outputs"):
        load_encoder(str(merged), task="passage").encode_multi(["x"])
    blind = write_jina_v4(tmp_path / "blind", vision=None)
    assert len(load_encoder(str(blind), outputs=("multi",), **PASSAGE).encode_multi(["x"])) == 1
    with pytest.raises(ConfigError, match=r"encoder\.multi_pool is for pictures, and .* takes texts only"):
        describe(str(blind), outputs=("multi",), multi_pool=2, **PASSAGE)


def test_a_merged_checkpoint_may_have_a_projector(tmp_path):
    """As someone makes it who merges an adapter into all layers that it changes."""
    beside = write_jina_v4(tmp_path / "beside")
    merged = write_jina_v4(tmp_path / "merged", merged="retrieval")
    own, factors = (load_file(beside / file) for file in ("model.safetensors", "adapters/adapter_model.safetensors"))
    down, up = (factors[f"base_model.model.multi_vector_projector.lora_{end}.retrieval.weight"] for end in "AB")
    projector = {name: tensor for name, tensor in own.items() if "projector" in name}
    projector["multi_vector_projector.weight"] += 2 * up @ down
    save_file(load_file(merged / "model.safetensors") | projector, merged / "model.safetensors")
    with pytest.raises(ModelError, match=r"multi_vector_projector\.weight \[8, 32\] instead of \[128, 32\]"):
        describe(str(merged), task="passage", outputs=BOTH)  # its config does not say another width
    copy = edit(merged, tmp_path / "copy", multi_vector_projector_dim=8)
    vectors = load_encoder(str(copy), task="passage", dtype="float32", outputs=BOTH).encode_multi(SENTENCES)
    assert_close(vectors, load_encoder(str(beside), outputs=BOTH, **PASSAGE).encode_multi(SENTENCES))


@pytest.mark.parametrize("damaged", ["model.safetensors", "adapters/adapter_model.safetensors"])
def test_only_many_vectors_need_the_projector(folder, tmp_path, damaged):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lost = "multi_vector_projector.bias" if damaged == "model.safetensors" else ".multi_vector_projector.lora_"
    kept = {name: tensor for name, tensor in load_file(copy / damaged).items() if lost not in name}
    save_file(kept, copy / damaged)
    expected = load_encoder(str(folder), **PASSAGE).encode(SENTENCES)
    np.testing.assert_array_equal(load_encoder(str(copy), **PASSAGE).encode(SENTENCES), expected)
    with pytest.raises(ModelError, match=r"lacks (1 of \d+ tensors|the factors of multi_vector_projector)"):
        describe(str(copy), outputs=("multi",), **PASSAGE)


def test_the_lineage_says_what_is_kept(folder):
    plain = describe(str(folder), **PASSAGE)
    spec = describe(str(folder), outputs=["multi", "dense"], multi_pool=2, multi_keep="content", **PASSAGE)
    assert plain.lineage().keys().isdisjoint({"outputs", "multi_pool", "multi_keep"})
    added = {"outputs": "embedding dense 32, embedding_multi multi 8", "multi_keep": "content"}
    assert spec.lineage() == plain.lineage() | added  # texts are not pooled
    assert spec.seeing().lineage() == plain.seeing().lineage() | added | {"multi_pool": 2}
    assert hash(spec) != hash(plain)
    query = spec.seeing().query_side()
    assert (query.task, query.multi_keep, query.multi_pool) == ("retrieval.query", "content", None)


def test_chunks_have_no_many_vectors(folder):
    with pytest.raises(ConfigError, match="chunking.mode late cuts texts, and encoder.outputs names multi"):
        resolve(describe(str(folder), outputs=BOTH, **PASSAGE), mode="late")
