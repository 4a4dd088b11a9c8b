"""A training from its job to a result that the encoder loads: on the smallest model, in this process."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.encoders import load_encoder
from actors.errors import ConfigError, DataError, StorageError, TableConflict
from jobs.commands.status import status
from pipeline.job.training import parse_training
from pipeline.ledger.table_lock import lock_table
from pipeline.report.load import load_report
from pipeline.report.page import render
from pipeline.train import run as driver
from pipeline.train.checkpoints import Checkpoints, read_fitted
from pipeline.train.plan import plan_training
from pipeline.train.record import Record, open_record, read_record, settings_of
from pipeline.train.resolve import resolve
from pipeline.train.run import train
from pipeline.train.state import run_of
from tests.checkpoints.bert import write_bert

STEPS = 4


class Killed(BaseException):
    """Ends a training as a signal does."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, pairs, and the result of a training that nothing disturbs."""
    folder: Path = tmp_path_factory.mktemp("train")
    write_bert(folder / "model", layers=1, pooling={"pooling_mode_mean_tokens": True}, max_tokens=32)
    random = Random(0)
    words = ["".join(random.choices("abcdefgh", k=4)) for _ in range(40)]
    rows = [{name: " ".join(random.choices(words, k=5)) for name in ("query", "passage")} for _ in range(32)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(job(folder))
    return folder


def job(folder: Path, out: str = "out", **settings: Any):
    document = {
        "train": {"model": str(folder / "model"), "task": "legal", "batch_rows": 8, "checkpoint_steps": 2,
                  "max_steps": STEPS, "learning_rate": 0.01, **settings.pop("train", {})},
        "data": [{"uri": str(folder / "pairs.jsonl")}],
        "out": {"uri": str(folder / out)},
        "run": {"address": "inline"},
    }  # fmt: skip
    return parse_training({**document, **settings})


def weights_of(out: Path) -> bytes:
    return (out / "adapters" / "legal" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_encoder_takes_the_result(place):
    path = str(place / "out" / "adapters" / "legal")
    encoder = load_encoder(str(place / "model"), dtype="float32", task="legal", adapters={"legal": adapter(path)})
    base = load_encoder(str(place / "model"), dtype="float32")
    assert abs(encoder.encode(["abcd efgh"]) - base.encode(["abcd efgh"])).max() > 1e-3
    card = (place / "out" / "README.md").read_text()
    assert card == (place / "out" / "adapters" / "legal" / "README.md").read_text()
    assert f"legal: {path}" in card


@pytest.mark.slow
def test_a_continued_adapter_is_compared_with_what_it_was(place):
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    ids = [str(number) for number in range(len(pairs))]
    tables = {
        "corpus": {"id": ids, "text": [pair["passage"] for pair in pairs]},
        "queries": {"id": ids, "text": [" ".join(reversed(pair["query"].split())) for pair in pairs]},
        "judgements": {"query": ids, "doc": ids},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), place / f"{name}.parquet")
    held_out = {"every_steps": 1, **{name: str(place / f"{name}.parquet") for name in tables}}
    first = train(job(place, out="first", train={"evaluate": held_out, "learning_rate": 0.05})).scores
    assert first is not None
    again = {"start_from": str(place / "first" / "adapters" / "legal"), "learning_rate": 1e-12, "max_steps": 1}
    second = train(job(place, out="second", train={"evaluate": held_out, **again})).scores
    assert second is not None
    assert first["before"] < first["after"]
    assert second["before"] == second["after"] == first["after"]


def adapter(path: str):
    from actors.encoders.settings import AdapterSettings

    return AdapterSettings(path)


@pytest.mark.slow
def test_a_finished_training_says_its_result_again(place):
    again = train(job(place))
    assert (again.already_done, again.fitted.steps, again.rows) == (True, STEPS, 32)
    assert again.difference < 1e-6
    assert plan_training(job(place)).done == "finished"


@pytest.mark.parametrize(
    ("train_", "said"),
    [
        ({"learning_rate": 0.02}, r"train\.learning_rate is 0\.02, and was 0\.01"),
        ({"evaluate": None, "task": "other"}, r"train\.task is \['other'\], and was \['legal'\]"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(place, train_, said):
    with pytest.raises(ConfigError, match=said):
        train(job(place, train=train_))


def test_keys_that_change_no_weight_may_change(place):
    assert train(job(place, train={"budget_tokens": 64, "checkpoint_steps": 1})).already_done


def test_a_folder_with_other_files_is_refused(place):
    (place / "others").mkdir()
    (place / "others" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"has other files, such as .*notes.txt.*; name a new folder"):
        train(job(place, out="others"))


@pytest.mark.slow
def test_a_training_that_is_stopped_ends_with_the_same_weights(place, monkeypatch):
    """Stopped before the first step, and by a full disk at the export."""
    with monkeypatch.context() as patch:
        patch.setattr(driver, "train_on_ray", raising(Killed()))
        with pytest.raises(Killed):
            train(job(place, out="stopped"))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.train.export.save_factors", raising(OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="the disk is full"):
            train(job(place, out="stopped"))
    train(job(place, out="stopped"))
    assert weights_of(place / "stopped") == weights_of(place / "out")
    ends = [call["end"] for call in load_report(str(place / "stopped"))["calls"]]
    assert ends == ["interrupted", "failed", "finished"]


class Notes(driver.Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


def raising(error: BaseException):
    def call(*_: object) -> None:
        raise error

    return call


def test_a_result_with_a_lost_file_is_written_again(place):
    folder = place / "out" / "adapters" / "legal"
    before = weights_of(place / "out")
    (folder / "adapter_model.safetensors").unlink()
    assert not train(job(place)).already_done
    assert weights_of(place / "out") == before


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"settings": [1]}', '{"settings": {}, "result": 5}'])
def test_a_damaged_record_is_an_error(tmp_path, content):
    (tmp_path / "_vectide").mkdir()
    (tmp_path / "_vectide" / "training.json").write_text(content)
    for read in (read_record, lambda out: open_record(out, {})):
        with pytest.raises(DataError, match="is not the record of a training"):
            read(str(tmp_path))


def test_a_damaged_result_is_an_error(place, tmp_path):
    shutil.copytree(place / "out" / "_vectide", tmp_path / "out" / "_vectide")
    file = tmp_path / "out" / "_vectide" / "training.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"result": {"fitted": {}}}))
    damaged = job(place).model_copy(update={"out": job(place).out.model_copy(update={"uri": str(tmp_path / "out")})})
    with pytest.raises(DataError, match="is not the record of a training"):
        train(damaged)


@pytest.mark.parametrize("content", ["{}", "[]", ""])
def test_a_damaged_end_of_a_training_is_an_error(tmp_path, content):
    assert read_fitted(str(tmp_path)) is None
    (tmp_path / "_vectide" / "trained").mkdir(parents=True)
    (tmp_path / "_vectide" / "trained" / "fitted.json").write_text(content)
    with pytest.raises(DataError, match=r"fitted\.json' is damaged or missing; delete"):
        read_fitted(str(tmp_path))


def test_a_second_process_of_a_training_is_refused(place, monkeypatch):
    monkeypatch.setattr(driver, "train_on_ray", raising(Killed()))
    with lock_table(str(place / "twice"), run_of(settings_of(*resolve(job(place, out="twice")))), what="train"):
        monkeypatch.setattr("os.getpid", os.getppid)
        with pytest.raises(TableConflict, match="is the same run in another process"):
            train(job(place, out="twice"))


def test_the_state_of_a_training_as_json(place, capsys):
    out, keys = str(place / "state"), {}
    record = Record({"train.seed": 1})
    record.write(out)

    def shown() -> dict[str, Any]:
        status(out, json=True)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        keys.update(found)
        return found

    stopped = {"training": run_of(record.settings), "state": "stopped", "step": 0, "out": out, "owner": None}
    assert shown() == stopped
    Checkpoints(out).save(8, {"model": b"weights"})
    assert shown() == {**stopped, "step": 8}
    with lock_table(out, "a", what="train"):
        found = shown()
        assert found == {**stopped, "state": "running", "step": 8, "owner": found["owner"]}
        assert f"train (run a, host {socket.gethostname()}, process {os.getpid()}, since" in found["owner"]
        status(out)
        assert "a training that is running, by train (run a, " in (said := capsys.readouterr().out)
        assert said.endswith("its last checkpoint is of step 8\n")
    record.result = {"fitted": {"steps": 12}}
    record.write(out)
    assert shown() == {**stopped, "state": "finished", "step": 12}
    record.result = {"fitted": {}}
    record.write(out)
    with pytest.raises(DataError, match="is not the record of a training"):
        status(out)
    page = (Path(__file__).parents[3] / "docs" / "fine-tuning.md").read_text()
    assert [key for key in keys if f"\n| `{key}` | " not in page] == []


def test_a_checkpoint_that_is_gone_is_named_as_such(tmp_path):
    with pytest.raises(DataError, match=r"step-000007' is damaged, or another process removed it; run the same"):
        Checkpoints(str(tmp_path)).fetch(7, tmp_path)


def test_other_rows_in_the_same_folder_are_refused(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(driver, "train_on_ray", raising(Killed()))
        with pytest.raises(Killed):
            train(job(place, out="rows"))
    pairs = place / "pairs.jsonl"
    text = pairs.read_text()
    try:
        pairs.write_text("\n".join(text.splitlines()[1:]))
        notes = Notes()
        assert train(job(place), notes).already_done
        assert notes.steps == [
            "the files of data have changed since this training; to train with them, name another out.uri"
        ]
        (place / "rows" / "_vectide" / "runs").rename(place / "runs")  # as after a kill, which records no call
        status(str(place / "rows"))
        assert (
            "rows: a stopped training: run the same `vectide train` again, and it continues from step 0"
            in capsys.readouterr().out
        )
        with pytest.raises(ConfigError, match=r"the rows of .*pairs\.jsonl have changed since the training"):
            train(job(place, out="rows"))
    finally:
        pairs.write_text(text)


def test_the_report_has_the_curves(place):
    report = load_report(str(place / "out"))
    curves = report["training"]["curves"]
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    assert {"learning_rate", "gradient_norm"} < curves.keys()
    page = render(report)
    assert 'aria-label="loss by step"' in page
    assert "vectide train --set" in page


def test_a_plan_counts_without_writing(place):
    planned = plan_training(job(place, out="planned"))
    layer = 4 * (32 + 32) + 2 * (32 + 64)  # query, key, value, output; up, down
    assert planned.parameters[0] == 16 * layer
    assert (planned.rows, planned.steps, planned.done) == (32, STEPS, None)
    assert not (place / "planned").exists()


def test_too_few_rows_are_refused_before_a_step(place):
    with pytest.raises((ConfigError, DataError), match=r"32 rows.*train\.batch_rows"):
        plan_training(job(place, out="few", train={"batch_rows": 64}))


def test_the_last_line_is_the_one_for_a_log_of_rounds(place, capsys):
    from dataclasses import replace

    from jobs.commands.train import _print

    new = replace(train(job(place)), already_done=False)
    _print(new)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"adapter: {place / 'out'}")
    _print(replace(new, scores={"before": 0.1, "after": 0.2, "low": 0.05, "high": 0.15}))
    assert capsys.readouterr().out.splitlines()[-1] == "nDCG@10 before 0.1000 after 0.2000 [+0.0500, +0.1500]"


def test_the_commands_take_the_job(place, capsys):
    from jobs.commands.plan import plan as plan_command
    from jobs.commands.train import train as train_command

    file = place / "job.yaml"
    file.write_text(json.dumps(job(place).model_dump(mode="json")))
    train_command(str(file))
    printed = capsys.readouterr().out
    nothing = f"nothing left to do: {place / 'out'} already holds the result of this job"
    assert printed.splitlines()[-1] == nothing
    assert f"encoder.adapters: {{legal: {place / 'out' / 'adapters' / 'legal'}}}" in printed
    status(str(place / "out"))
    assert capsys.readouterr().out == f"{place / 'out'}: a finished training: `vectide report` shows it\n"
    plan_command(str(file))
    assert "steps  4, about " in capsys.readouterr().out
