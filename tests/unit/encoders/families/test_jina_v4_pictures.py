"""Pictures through v4, compared with transformers' own classes and PEFT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.encoders import describe, load_encoder
from actors.encoders.families.jina_v4_layout import adapter_of
from actors.images.pixels import pack_pixels
from actors.inputs import PAGE_CONTENT as PAGE
from actors.inputs import load_preparer
from actors.schema import INPUT_IDS, TASK
from tests.checkpoints import SENTENCES, write_jina_v4
from tests.checkpoints.jina_v4 import TASKS
from tests.unit.encoders.jina_v4_oracle import Oracle, split_adapters

# Rows and columns of tokens. Windows are 4 x 4: whole ones, with a smaller edge on one side or both, strips, one token.
GRIDS = [(2, 2), (4, 4), (8, 4), (5, 4), (4, 7), (9, 6), (1, 13), (17, 1), (1, 1), (3, 2)]
KEYS: dict[str, dict[str, Any]] = {"old": {"keys": "old"}, "new": {"keys": "new"}}


def random_pixels(grid, seed=0):
    """Returns the pixels of a picture with these rows and columns of tokens."""
    rows, columns = grid
    return np.random.default_rng([seed, *grid]).integers(0, 256, (28 * rows, 28 * columns, 3), np.uint8)


PIXELS = [random_pixels(grid) for grid in GRIDS]
# Texts and pictures in turn.
MIXED = [each for pair in zip(PIXELS, [*SENTENCES, "x", "", "query"], strict=True) for each in pair]


def content_of(rows):
    """Returns texts and pixels as content."""
    return pa.chunked_array(
        [pa.array([{"text": row} if isinstance(row, str) else {"picture": pack_pixels(row)}], PAGE) for row in rows],
        PAGE,
    )


def load(folder, task="retrieval.passage", **others):
    spec = describe(str(folder), task=task, dtype="float32", **others)
    return load_encoder(spec.seeing())


def prepare(encoder, rows, tasks=None):
    table = load_preparer(encoder.spec).prepare(content_of(rows), tasks).rows
    return table if tasks is None else table.append_column(TASK, pa.array(tasks, pa.string()))


def encode(encoder, rows, tasks=None):
    encoded = encoder.encode_rows(prepare(encoder, rows, tasks))
    assert not encoded.reasons
    return encoded.outputs[0].flatten().to_numpy().reshape(len(rows), -1)


def expected_vectors(oracle, encoder, rows, tasks):
    """Returns the oracle's vectors, pooled as the publisher's code does."""
    end = encoder.tokenizer.tokenize(["<|vision_start|>", "<|vision_end|>"], [None, None]).ids.to_pylist()
    start, stop = (ids[0] for ids in end)
    means = []
    for row, task, ids in zip(rows, tasks, prepare(encoder, rows, tasks)[INPUT_IDS].to_pylist(), strict=True):
        adapter = adapter_of(task) if task in TASKS else None
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


@pytest.mark.parametrize("task", TASKS)
def test_texts_and_pictures_match_transformers_and_peft(encoder, oracle, task):
    tasks = [task] * len(MIXED)
    expected = expected_vectors(oracle, encoder, MIXED, tasks)
    np.testing.assert_allclose(encode(encoder, MIXED, tasks), expected, atol=1e-4, rtol=0)
