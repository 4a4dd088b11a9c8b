"""Pictures through v4, compared with transformers' own classes and PEFT."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.batching.budget import BudgetController
from actors.encoders import describe, load_encoder
from actors.encoders.compute.attention import attend_padded, attend_runs
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.families import jina_v4_vision
from actors.encoders.families.jina_v4_layout import adapter_of
from actors.encoders.pictured import Picture, axial_positions, place_pictures
from actors.encoders.preprocessor import MEAN, STD
from actors.errors import DataError
from actors.images.pixels import pack_pixels
from actors.inputs import PAGE_CONTENT, load_preparer
from actors.schema import INPUT_IDS, TASK
from tests.checkpoints import SENTENCES, write_jina_v4
from tests.checkpoints.jina_v4 import ADAPTERS, TASKS
from tests.examples import examples
from tests.unit.encoders.jina_v4_oracle import Oracle, patches, split_adapters

# Rows and columns of tokens. Windows are 4 x 4: whole ones, with a smaller edge on one side or both, strips, one token.
GRIDS = [(2, 2), (4, 4), (8, 4), (5, 4), (4, 7), (9, 6), (1, 13), (17, 1), (1, 1), (3, 2)]
KEYS: dict[str, dict[str, Any]] = {"old": {"keys": "old"}, "new": {"keys": "new"}}


def random_pixels(grid, seed=0):
    """Returns the pixels of a picture with these rows and columns of tokens."""
    rows, columns = grid
    return np.random.default_rng([seed, *grid]).integers(0, 256, (28 * rows, 28 * columns, 3), np.uint8)


PIXELS = [random_pixels(grid) for grid in GRIDS]
# Texts and pictures in turn.
OTHER_TEXTS = ("x", "", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>")
MIXED = [each for pair in zip(PIXELS, [*SENTENCES, *OTHER_TEXTS], strict=True) for each in pair]


def load(folder, task="retrieval.passage", **others):
    return load_encoder(describe(str(folder), task=task, dtype="float32", **others).seeing())


def tower_of(encoder: Any) -> Any:
    """Returns the vision tower of an encoder; None if it is not loaded."""
    return encoder.family.tower


def prepare(encoder, rows, tasks=None):
    """Returns texts and pixels as the read stage prepares them."""
    content = [{"text": row} if isinstance(row, str) else {"picture": pack_pixels(row)} for row in rows]
    table = load_preparer(encoder.spec).prepare(pa.chunked_array([pa.array(content, PAGE_CONTENT)]), tasks).rows
    return table if tasks is None else table.append_column(TASK, pa.array(tasks, pa.string()))


def encode(encoder, rows, tasks=None):
    encoded = encoder.encode_rows(prepare(encoder, rows, tasks))
    assert not encoded.reasons
    return encoded.outputs[0].flatten().to_numpy().reshape(len(rows), -1)


def expected_vectors(oracle, encoder, rows, tasks, adapters):
    """Returns the oracle's vectors, pooled as the publisher's code does."""
    start, stop = (
        encoder.tokenizer.tokenize([f"<|vision_{end}|>"], [None]).ids[0][0].as_py() for end in ("start", "end")
    )
    means = []
    ids_of_rows = prepare(encoder, rows, tasks)[INPUT_IDS].to_pylist()
    for row, adapter, ids in zip(rows, adapters, ids_of_rows, strict=True):
        states = oracle.states(ids, adapter, None if isinstance(row, str) else row)
        if not isinstance(row, str):
            states = states[ids.index(start) : ids.index(stop) + 1]
        means.append(states.mean(0)[: encoder.dim])
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("v4")
    return {name: write_jina_v4(root / name, dtype=torch.bfloat16, **how) for name, how in KEYS.items()}


@pytest.fixture(scope="module")
def oracle(folders, tmp_path_factory):
    return Oracle(folders["old"], split_adapters(folders["old"], tmp_path_factory.mktemp("split")))


@pytest.fixture(scope="module", params=KEYS)
def encoder(request, folders):
    return load(folders[request.param])


@pytest.fixture(scope="module")
def main(folders):
    return load(folders["old"])


# Numbers


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_texts_and_pictures_match_transformers_and_peft(encoder, oracle, task):
    tasks = [task] * len(MIXED)
    expected = expected_vectors(oracle, encoder, MIXED, tasks, [adapter_of(task)] * len(MIXED))
    np.testing.assert_allclose(encode(encoder, MIXED, tasks), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_rows_of_all_tasks_match_in_one_micro_batch(encoder, oracle):
    tasks = [TASKS[i % len(TASKS)] for i in range(len(MIXED))]
    before = encoder.stats.micro_batches
    actual = encode(encoder, MIXED, tasks)
    assert encoder.stats.micro_batches == before + 1
    expected = expected_vectors(oracle, encoder, MIXED, tasks, [adapter_of(task) for task in tasks])
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [8, 16, 32])
def test_every_dim_matches(folders, oracle, dim):
    encoder = load(folders["new"], dim=dim)
    tasks = ["retrieval.query"] * len(MIXED)
    expected = expected_vectors(oracle, encoder, MIXED, tasks, ["retrieval"] * len(MIXED))
    np.testing.assert_allclose(encode(encoder, MIXED, tasks), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["old", "new"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_merged_checkpoint_matches_transformers(tmp_path, keys, adapter):
    folder = write_jina_v4(tmp_path / "merged", merged=adapter, keys=keys, max_pixels=12_845_056)
    encoder = load(folder, task="passage")
    assert encoder.spec.pictures.max_pixels == 12_845_056
    expected = expected_vectors(Oracle(folder), encoder, MIXED, None, [None] * len(MIXED))
    np.testing.assert_allclose(encode(encoder, MIXED), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_tower_matches_transformers(main, oracle, grid):
    picture = Picture(pack_pixels(random_pixels(grid)), 3)
    pictures = place_pictures([picture], np.array([3 + grid[0] * grid[1]]), torch.device("cpu"))
    actual = main.family.tower(pictures).numpy()
    np.testing.assert_allclose(actual, oracle.merged(random_pixels(grid)), atol=1e-4, rtol=0)


def test_patches_are_those_of_transformers():
    pixels = random_pixels((3, 5))
    ours = jina_v4_vision._patches(torch.from_numpy(pixels)).reshape(-1, 3, 196).numpy() / 255
    ours = (ours - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    values = patches(pixels)[0].numpy().reshape(-1, 3, 2, 196)
    for frame in range(2):
        np.testing.assert_allclose(ours, values[:, :, frame], atol=1e-5)


def test_packed_rows_match_transformers_packed(main, oracle):
    """transformers sees the ends of packed rows only in a fourth row of positions."""
    rows = prepare(main, MIXED[:6], [TASKS[1]] * 6)
    flat, lengths, positions = [], [], []
    for row, ids in zip(MIXED, rows[INPUT_IDS].to_pylist(), strict=False):
        flat += ids
        lengths.append(len(ids))
        plain = np.arange(len(ids))
        axes = np.tile(plain, (3, 1))
        if not isinstance(row, str):
            start = ids.index(oracle._tower.config.image_token_id)
            axes = axial_positions(len(ids), start, (row.shape[0] // 28, row.shape[1] // 28))
        positions.append(np.vstack([plain, axes]))
    seen = [patches(row) for row in MIXED[:6] if not isinstance(row, str)]
    oracle._peft.set_adapter("retrieval")
    with torch.no_grad():
        packed = oracle._tower(
            input_ids=torch.tensor([flat]),
            position_ids=torch.from_numpy(np.concatenate(positions, axis=1))[:, None],
            pixel_values=torch.cat([values for values, _ in seen]),
            image_grid_thw=torch.cat([grid for _, grid in seen]),
            use_cache=False,
        ).last_hidden_state[0]
    means = [
        states.mean(0).numpy()
        for states, row in zip(packed.split(lengths), MIXED, strict=False)
        if isinstance(row, str)
    ]
    actual = encode(main, MIXED[:6], [TASKS[1]] * 6)
    for vector, mean in zip(actual[1::2], means, strict=True):
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


# Positions


def test_positions_are_the_published_ones():
    """transformers gives these to the prompt of a picture of 4 x 4 patches."""
    time, row, column = axial_positions(15, 4, (2, 2)).tolist()
    assert time == [0, 1, 2, 3, 4, 4, 4, 4, 6, 7, 8, 9, 10, 11, 12]
    assert row == [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]
    assert column == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_positions_are_those_of_transformers(main, oracle, grid):
    ids = torch.tensor(prepare(main, [random_pixels(grid)])[INPUT_IDS].to_pylist())
    is_picture = (ids == oracle._tower.config.image_token_id).int()
    seen = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    expected, _ = oracle._tower.get_rope_index(ids, mm_token_type_ids=is_picture, image_grid_thw=seen)
    start = int(is_picture[0].argmax())
    np.testing.assert_array_equal(axial_positions(ids.shape[1], start, grid), expected[:, 0].numpy())


def test_a_picture_of_other_proportions_has_another_vector(main):
    """The same patches row after row: only their positions and windows differ."""
    grey = [np.full((28 * rows, 28 * columns, 3), 99, np.uint8) for rows, columns in ((2, 6), (3, 4), (6, 2))]
    vectors = encode(main, grey)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 0.99999


# A row and its company


ROWS = st.lists(st.tuples(st.sampled_from(range(len(MIXED))), st.sampled_from(TASKS)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def alone(main):
    """Return the function that encodes one row alone, each row once."""
    return cache(lambda i, task: encode(main, [MIXED[i]], [task])[0])


@examples(25)
@given(ROWS)
def test_order_and_other_rows_change_no_vector(main, alone, rows):
    together = encode(main, [MIXED[i] for i, _ in rows], [task for _, task in rows])
    for (i, task), vector in zip(rows, together, strict=True):
        np.testing.assert_allclose(alone(i, task), vector, atol=1e-5, rtol=0)


def test_groups_of_pictures_in_the_tower_change_no_vector(main, monkeypatch):
    expected = encode(main, MIXED)
    sizes = []
    tower = type(main.family.tower)
    encode_group = tower._encode

    def counted(self, pixels):
        sizes.append(len(pixels))
        return encode_group(self, pixels)

    monkeypatch.setattr(tower, "_encode", counted)
    monkeypatch.setattr(jina_v4_vision, "_GROUP_PATCHES", 100)
    np.testing.assert_allclose(encode(main, MIXED), expected, atol=1e-5, rtol=0)
    assert sum(sizes) == len(PIXELS)
    assert len(sizes) > 3
    assert max(sizes) > 1


def test_texts_alone_compute_as_without_a_tower(folders, main):
    without = load_encoder(describe(str(folders["old"]), task="retrieval.passage", dtype="float32"))
    assert tower_of(without) is None
    np.testing.assert_array_equal(encode(main, SENTENCES), without.encode(SENTENCES))
    np.testing.assert_allclose(encode(main, [*SENTENCES, PIXELS[0]])[:-1], without.encode(SENTENCES), atol=1e-5, rtol=0)


def test_out_of_memory_in_the_tower_halves_the_micro_batch(main, monkeypatch):
    expected = encode(main, MIXED)
    encoder = Encoder(main.spec, compute=main.compute, family=main.family, budget=BudgetController([1024]))
    tower = main.family.tower

    def small(pictures):
        if len(pictures.pixels) > 3:
            raise torch.OutOfMemoryError("too many")
        return tower(pictures)

    monkeypatch.setattr(main.family, "tower", small)
    np.testing.assert_allclose(encode(encoder, MIXED), expected, atol=1e-5, rtol=0)
    assert encoder.stats.out_of_memory > 0


def test_a_picture_that_does_not_fit_alone_is_named(main, monkeypatch):
    def none(pictures):
        raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(main.family, "tower", none)
    with pytest.raises(DataError, match=r"row 0 with \d+ tokens does not fit .* Lower max_pixels or max_tokens"):
        encode(main, PIXELS[:1])


# Types


def test_bfloat16_vectors_are_close(main):
    narrow = Encoder(main.spec, compute=Compute(torch.device("cpu"), torch.bfloat16))
    assert tower_of(narrow).dtype == torch.float32  # on a CPU
    cosines = (encode(narrow, MIXED) * encode(main, MIXED)).sum(1)
    assert cosines.min() > 0.999
    assert cosines.max() < 0.9999999  # the compute type did change


def test_products_of_integers_leave_the_tower_in_float32(main):
    narrow = Encoder(main.spec, compute=Compute(torch.device("cpu"), torch.float32, int8=True))
    assert not tower_of(narrow).compute.int8
    assert (encode(narrow, MIXED) * encode(main, MIXED)).sum(1).min() > 0.99


@pytest.mark.parametrize("attend", [attend_runs, attend_padded])
def test_every_attention_gives_the_same_states(main, monkeypatch, attend):
    """The first is that of CPUs without our kernels, the second that of GPUs in float32."""
    expected = encode(main, MIXED)
    monkeypatch.setattr(jina_v4_vision, "attend", attend)
    np.testing.assert_allclose(encode(main, MIXED), expected, atol=1e-5, rtol=0)
