"""The trainer on the smallest model: what a resume, a full disk, a bad loss, little memory and early stopping lead to.

A process that is killed leaves behind what one leaves that raises at the same place, since everything that lasts is written
by whole files.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from actors import storage
from actors.errors import ConfigError, Diverged, StorageError
from pipeline.job.training import parse_training
from pipeline.train import worker
from pipeline.train.checkpoints import Checkpoints, load_trained, read_fitted
from tests.toys.training import Pairs, Words, parts

STEPS = 10


def words_of(ours: Any) -> Words:
    words: Words = ours.model[0]
    return words


class Killed(BaseException):
    """Ends a training as a signal does."""


def settings(out: Path, **others: Any) -> worker.Settings:
    train = {
        "model": "none",
        "batch_rows": 8,
        "epochs": 2,
        "max_steps": STEPS,
        "checkpoint_steps": 3,
        "learning_rate": 0.01,
    }
    document = {"train": {**train, **others.pop("train", {})}, "data": [{"uri": "none"}], "out": {"uri": str(out)}}
    ours: dict[str, Any] = {
        "spec": None,
        "data": out,
        "resume": Checkpoints(str(out)).newest(),
        "budget_tokens": 64,
        "note": lambda _: None,
        "report": lambda *_: None,
    }
    return worker.Settings(parse_training(document), folder=str(out), **{**ours, **others})


def steps_of(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "_vectide" / "steps.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return records


def result_of(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    return (out / "_vectide" / "trained" / "weights.safetensors").read_bytes(), steps_of(out)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """accelerate collects garbage when a training begins, which takes a second with all that torch has loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def reported() -> list[tuple[int, str]]:
    """The numbers and sources of the steps that `undisturbed` reports."""
    return []


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, reported: list[tuple[int, str]]
) -> tuple[bytes, list[dict[str, Any]]]:
    """Weights and steps of a run that nothing stops."""

    def report(step: int, _steps: int, _loss: float, source: str) -> None:
        reported.append((step, source))

    out = tmp_path_factory.mktemp("undisturbed")
    worker.fit(parts(), settings(out, report=report), None)
    return result_of(out)


def kill_at_step(number: int) -> Callable[..., None]:
    def report(step: int, *_: Any) -> None:
        if step == number:
            raise Killed

    return report


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, STEPS])
def test_a_run_that_is_killed_and_goes_on_ends_with_the_same_bits(step, tmp_path, undisturbed):
    with pytest.raises(Killed):
        worker.fit(parts(), settings(tmp_path, report=kill_at_step(step)), None)
    assert read_fitted(str(tmp_path)) is None
    resumed = settings(tmp_path)
    assert resumed.resume == {2: None, 5: 3, STEPS: 9}[step]
    worker.fit(parts(), resumed, None)
    assert result_of(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("last", ["optimizer.pt", "manifest.json"])
def test_a_half_written_checkpoint_is_not_loaded(last, tmp_path, undisturbed, monkeypatch):
    put = storage.put

    def killed_before(url: str, content: bytes) -> None:
        if url.endswith(f"step-000006/{last}"):
            raise Killed
        put(url, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", killed_before)
        with pytest.raises(Killed):
            worker.fit(parts(), settings(tmp_path), None)
    resumed = settings(tmp_path)
    assert resumed.resume == 3
    worker.fit(parts(), resumed, None)
    assert result_of(tmp_path) == undisturbed


def test_a_damaged_checkpoint_is_not_loaded_and_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2, 3, 10):
        checkpoints.save(step, {"a": b"%d" % step, "b": b"x"})
    root = tmp_path / "_vectide" / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["step-000003", "step-000010"]
    assert checkpoints.newest() == 10
    (root / "step-000010" / "a").write_bytes(b"11")
    assert checkpoints.newest() == 3
    for damaged in (b"{}", b"[]", b"null", b"", b"\xff\xfe\0", b'{"a": 1}'):
        (root / "step-000010" / "manifest.json").write_bytes(damaged)
        assert checkpoints.newest() == 3
    (root / "step-000003" / "b").unlink()
    assert checkpoints.newest() is None


@pytest.mark.slow
def test_a_full_disk_stops_with_a_sentence_and_keeps_the_checkpoint_before(tmp_path, undisturbed, monkeypatch):
    put = storage.put

    def full(url: str, content: bytes) -> None:
        if "step-000006" in url:
            raise StorageError(f"cannot write {url!r}: the disk is full.")
        put(url, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", full)
        with pytest.raises(StorageError, match="the disk is full"):
            worker.fit(parts(), settings(tmp_path), None)
    worker.fit(parts(), settings(tmp_path), None)
    assert result_of(tmp_path) == undisturbed


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(tmp_path):
    sources = (Pairs("clean", 40),)
    ours = parts(*sources)
    loss: Any = ours.losses["clean"]

    def report(step: int, _steps: int, _loss: float, source: str) -> None:
        assert not source
        loss.own.scale = 20.0 if step < 4 else torch.nan

    message = r"step 5: the loss is not finite \(nce nan\), in rows (\d+), [\d, ]+ of 'clean', the first with the query 'query \1'"
    with pytest.raises(Diverged, match=message) as raised:
        worker.fit(ours, settings(tmp_path, report=report), None)
    assert "The checkpoint of step 3 is kept. Lower train.learning_rate (0.01)" in str(raised.value)
    assert len(steps_of(tmp_path)) == 4
    assert Checkpoints(str(tmp_path)).newest() == 3
    assert all(each.isfinite().all() for each in ours.model.parameters())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    ours = parts()
    words_of(ours).last.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(Diverged, match=r"step 1: the gradient is not finite, in rows .* of 'a.first'"):
        worker.fit(ours, settings(tmp_path), None)


@pytest.mark.slow
def test_a_step_that_lacks_memory_is_repeated_with_half_the_tokens(tmp_path):
    notes: list[str] = []
    worker.fit(parts(dropout=0.0), settings(tmp_path / "enough"), None)
    ours = parts(dropout=0.0)
    words_of(ours).most_tokens = 20
    worker.fit(ours, settings(tmp_path / "little", note=notes.append), None)
    weights, expected = (load(result_of(tmp_path / name)[0]) for name in ("little", "enough"))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert [record["tokens"] for record in steps_of(tmp_path / "little")] == [
        record["tokens"] for record in steps_of(tmp_path / "enough")
    ]
    assert notes == [
        "step 1: out of memory with 64 tokens at once; repeated and continued with 32",
        "step 1: out of memory with 32 tokens at once; repeated and continued with 16",
    ]
    assert (read_fitted(str(tmp_path / "little")) or {})["budget_tokens"] == 16


def test_a_text_that_does_not_fit_alone_is_an_error(tmp_path):
    ours = parts()
    words_of(ours).most_tokens = 2
    with pytest.raises(ConfigError, match="step 1: out of memory with one text at a time, of up to 5 tokens"):
        worker.fit(ours, settings(tmp_path), None)


class Scores:
    """Held-out data with known results."""

    def __init__(self, **scores: float) -> None:
        self.scores = {int(name[1:]): value for name, value in scores.items()}
        self.weights: dict[int, Any] = {}

    def measure(self, model: Any, step: int) -> float:
        self.weights[step] = {name: each.detach().clone() for name, each in model.named_parameters()}
        return self.scores[step]


EVALUATED = {"evaluate": {"every_steps": 2, "corpus": "c", "queries": "q", "judgements": "j", "patience": 2}}


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [None, 5])
def test_early_stopping_keeps_the_best_weights_also_after_a_resume(killed_at, tmp_path):
    held_out = Scores(_0=0.1, _2=0.3, _4=0.2, _6=0.5, _8=0.4, _10=0.4)
    ours: dict[str, Any] = {"train": EVALUATED}
    if killed_at:
        with pytest.raises(Killed):
            worker.fit(parts(), settings(tmp_path, **ours, report=kill_at_step(killed_at)), held_out)
    worker.fit(parts(), settings(tmp_path, **ours), held_out)
    fitted = worker.Fitted(**(read_fitted(str(tmp_path)) or {}))
    assert (fitted.steps, fitted.stopped, fitted.best_step, fitted.best_value, fitted.first_value) == (
        *(10, "finished", 6, 0.5, 0.1),
    )
    model = parts().model
    load_trained(model, str(tmp_path))
    for name, value in model.named_parameters():
        assert torch.equal(value, held_out.weights[6][name])
    evaluations = {record["step"]: record.get("evaluation") for record in steps_of(tmp_path)}
    assert evaluations == {step: held_out.scores.get(step) for step in range(1, 11)}


def test_patience_stops_the_training(tmp_path):
    held_out = Scores(_0=0.1, _2=0.3, _4=0.3, _6=0.2)
    others = {"checkpoint_steps": 2, "epochs": 1, "max_steps": 100}  # an epoch has 8 steps
    notes: list[str] = []
    worker.fit(parts(), settings(tmp_path, train={**EVALUATED, **others}, note=notes.append), held_out)
    assert notes == [
        "step 0, before the training: nDCG@10 0.1000",
        "step 2: nDCG@10 0.3000, the best so far",
        "step 4: nDCG@10 0.3000; the best is 0.3000, of step 2",
        "step 6: nDCG@10 0.2000; the best is 0.3000, of step 2",
    ]
    fitted = worker.Fitted(**(read_fitted(str(tmp_path)) or {}))
    assert (fitted.steps, fitted.planned_steps, fitted.stopped, fitted.best_step) == (6, 8, "patience", 2)
    assert Checkpoints(str(tmp_path)).newest() == 4  # a resume from step 6 would train on


def test_the_steps_are_recorded_with_their_terms(undisturbed, reported):
    _, steps = undisturbed
    assert [(record["step"], record["source"]) for record in steps] == reported
    assert [record["step"] for record in steps] == [*range(1, STEPS + 1)]
    assert {record["source"] for record in steps} == {"a.first", "second"}
    assert all(record["terms"] == {"nce": record["loss"]} and record["tokens"] > 0 for record in steps)
    assert steps[0]["learning_rate"] < steps[1]["learning_rate"] > steps[-1]["learning_rate"] > 0


def test_only_what_is_trained_is_saved(undisturbed):
    assert set(load(undisturbed[0])) == {"0.table.weight", "0.last.weight", "0.last.bias"}
