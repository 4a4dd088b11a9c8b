"""The driver's side: how many workers a cluster gets, which error of theirs is raised, and what goes to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.errors import ClusterError, ConfigError, Diverged
from pipeline.job.training import Training, parse_training
from pipeline.plan.resources import Machine
from pipeline.train import on_ray, worker


def job(batch_rows: int = 48, **run: Any) -> Training:
    document = {"train": {"model": "none", "batch_rows": batch_rows}, "data": [{"uri": "none"}], "out": {"uri": "none"}}
    return parse_training({**document, "run": run})


CPUS, GPUS = [Machine(2, 0), Machine(7, 0)], [Machine(8, 2), Machine(8, 1, {"zone": "a"})]


@pytest.mark.parametrize(
    ("run", "machines", "expected"),
    [
        ({}, CPUS, (1, 0, 7)),
        ({"workers": 2}, CPUS, (2, 0, 3)),
        ({"workers": 4}, CPUS, (4, 0, 2)),
        ({}, GPUS, (3, 1, 1)),
        ({"gpus_per_worker": 0}, GPUS, (1, 0, 8)),
        ({"workers": 2}, GPUS, (2, 1, 1)),
        ({"labels": {"zone": "a"}}, GPUS, (1, 1, 1)),
    ],
)
def test_workers_get_what_the_machines_have(run, machines, expected):
    assert on_ray.worker_resources(job(**run), machines) == expected


@pytest.mark.parametrize(
    ("run", "machines", "message"),
    [
        ({"workers": 12}, CPUS, "run.workers is 12, and the machines of the cluster have 9 CPUs"),
        ({"workers": 4}, GPUS, "run.workers is 4, and the machines of the cluster have 3 GPUs"),
        ({"gpus_per_worker": 1}, CPUS, "have 0 GPUs"),
        ({"labels": {"zone": "b"}}, GPUS, "the machines with the labels of run.labels of the cluster have 0 CPUs"),
        ({"batch_rows": 50}, GPUS, "train.batch_rows is 50, and 3 workers cannot share them equally"),
    ],
)
def test_what_the_machines_do_not_have_is_refused(run, machines, message):
    with pytest.raises(ConfigError, match=message):
        on_ray.worker_resources(job(**run), machines)


class Failed(Exception):
    """An error of Ray Train."""

    def __init__(self, *failures: BaseException) -> None:
        super().__init__()
        self.worker_failures = dict(enumerate(failures))


class Wrapped(Exception):
    """An error of a worker, inside an error of Ray Train."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._base_exc = error


def test_the_error_that_ended_a_training_is_raised():
    from ray.exceptions import ActorDiedError

    closed = Wrapped(RuntimeError("Connection closed by peer"))
    assert isinstance(on_ray._cause(Failed(closed, Wrapped(Diverged("step 3"))), 2), Diverged)
    assert isinstance(on_ray._cause(Failed(ActorDiedError(), Wrapped(Diverged("step 3"))), 2), Diverged)
    assert isinstance(on_ray._cause(Failed(closed, ActorDiedError()), 2), ClusterError)
    assert "Connection closed" in str(on_ray._cause(Failed(closed), 2))
    assert isinstance(on_ray._cause(Failed(Wrapped(KeyError("a bug"))), 1), KeyError)


def test_workers_of_other_machines_fetch_the_data_from_the_store(tmp_path, monkeypatch):
    data = tmp_path / "driver" / "data-1"
    (data / "000").mkdir(parents=True)
    (data / "data.json").write_text("{}")
    (data / "000" / "rows.arrow").write_bytes(b"rows")
    folder = f"memory://train-{tmp_path.name}/out"
    on_ray._upload(data, folder)
    settings: Any = worker.Settings(job(), None, folder, tmp_path / "elsewhere" / "data-1", None, 1, print, print)  # type: ignore[arg-type]
    fetched = worker._local_data(settings, tmp_path)
    assert (fetched / "data.json").read_text() == "{}"
    assert (fetched / "000" / "rows.arrow").read_bytes() == b"rows"


def test_a_disk_that_the_machines_do_not_share_is_an_error(tmp_path):
    settings: Any = worker.Settings(job(), None, str(tmp_path), Path("/nowhere/data-1"), None, 1, print, print)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a disk that they share"):
        worker._local_data(settings, tmp_path)
