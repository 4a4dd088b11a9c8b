"""An adapter that is merged into the weights of an encoder with one task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.encoders import describe, encoder
from actors.encoders.compute import linear
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.errors import ConfigError
from tests.checkpoints import SENTENCES, write_jina_v3
from tests.checkpoints.jina_v4 import write_jina_v4

TASK = "retrieval.passage"


@pytest.fixture(scope="module", params=[write_jina_v3, write_jina_v4])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("model"))


@pytest.fixture
def load(folder, monkeypatch):
    """Loads the model as on a GPU: weights in torch's own layout, and merging by request."""
    monkeypatch.setattr(linear, "_can_pack", lambda compute: False)

    def make(dtype: torch.dtype, *, one_task: bool, fuses: bool = True, task: str | None = TASK) -> Encoder:
        monkeypatch.setattr(encoder, "fuses", lambda device: fuses)
        compute = Compute(torch.device("cpu"), dtype)
        return Encoder(describe(str(folder), task=task), compute=compute, one_task=one_task)

    return make


def test_a_merged_adapter_gives_the_vectors_of_one_beside_the_base(load):
    merged, beside = (load(torch.float32, one_task=one).encode(SENTENCES) for one in (True, False))
    np.testing.assert_allclose(merged, beside, atol=2e-6)
    other = load(torch.float32, one_task=False, task="text-matching").encode(SENTENCES)
    assert (merged * other).sum(1).max() < 0.99


def test_merging_in_bfloat16_costs_no_more_than_bfloat16(load):
    exact = load(torch.float32, one_task=False).encode(SENTENCES)
    merged, beside = (load(torch.bfloat16, one_task=one).encode(SENTENCES) for one in (True, False))
    assert not np.array_equal(merged, beside)
    for one, other in ((merged, beside), (merged, exact), (beside, exact)):
        assert (one * other).sum(1).min() > 0.9997


@pytest.mark.parametrize(("one_task", "fuses"), [(True, False), (False, True)])
def test_nothing_is_merged_without_both_conditions(load, one_task, fuses):
    loaded = load(torch.float32, one_task=one_task, fuses=fuses)
    tasks = [TASK, "text-matching"]
    assert np.isfinite(loaded.encode(SENTENCES[:2], tasks)).all()


def test_other_tasks_and_adapters_are_refused_after_a_merge(load, folder):
    merged = load(torch.float32, one_task=True)
    message = f"loaded for task {TASK!r} alone"
    for task in ("text-matching", None):
        with pytest.raises(ConfigError, match=message):
            merged.encode(SENTENCES[:2], [TASK, task])
    with pytest.raises(ConfigError, match=message):
        merged.family.adapters.load(["new"], folder)


def test_tasks_that_share_the_merged_adapter_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "_can_pack", lambda compute: False)
    monkeypatch.setattr(encoder, "fuses", lambda device: True)
    spec, compute = describe(str(write_jina_v4(tmp_path)), task=TASK), Compute(torch.device("cpu"), torch.float32)
    merged, beside = (Encoder(spec, compute=compute, one_task=one) for one in (True, False))
    tasks = [TASK, "retrieval.query"]
    np.testing.assert_allclose(merged.encode(SENTENCES[:2], tasks), beside.encode(SENTENCES[:2], tasks), atol=2e-6)
