"""The trainers that are compared train the same: the loss of each step is the same number."""

from __future__ import annotations

import pytest

from benchmarks import training_speed as speed
from tests.checkpoints import write_bert


@pytest.mark.slow
def test_all_trainers_have_the_same_loss_in_each_step(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "LONGEST", 60)
    monkeypatch.setattr(speed, "_LEARNING_RATE", 1e-2)
    pooling = {"embedding_dimension": 32, "pooling_mode": "mean"}
    model = write_bert(tmp_path / "model", tokenizer="word_piece", pooling=pooling)
    speed.make(tmp_path, model, rows=24)
    size = {"rows": 24, "batch_rows": 8}
    turns = {name: [way(tmp_path, model, **size)] for name, way in speed.WAYS.items()}
    [ours], *theirs = turns.values()
    assert len(ours.losses) == 3
    for [peer] in theirs:
        assert ours.losses == pytest.approx(peer.losses, rel=1e-4)
    assert abs(ours.losses[0] - ours.losses[2]) > 0.1  # the weights did change
    assert [len(each.seconds) for [each] in turns.values()] == [2, 2, 2]
    tokens = speed.tokens_of(tmp_path, model, batch_rows=8, steps=2)
    page = speed.markdown(
        turns,
        tokens=tokens,
        batch_rows=8,
        model=model,
        command="python",
        date="2026-11-30",
    )
    assert "| sentence-transformers | " in page
    assert " | 1.00 | " in page
