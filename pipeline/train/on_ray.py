"""Trains a model on Ray Train, or in this process: the driver's side.

Workers that die are started again, and go on from the last checkpoint. Light to import: Ray is imported when it is needed.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors import storage
from actors.encoders.spec import ModelSpec
from actors.errors import ClusterError, ConfigError, VectideError
from actors.storage.errors import redact
from pipeline.job.training import Training
from pipeline.plan.resources import Machine, labelled
from pipeline.train.checkpoints import Checkpoints, place, read_fitted
from pipeline.train.worker import Fitted, Progress, Settings, train_func

_FAILURES = 3  # in a row, without a new checkpoint
_POLL_S = 0.5
# Ray Train gives up after so many attempts to start the workers, each of this time. A machine may have to be brought up first.
_STARTS, _START_S = 6, 300


def train_on_ray(job: Training, spec: ModelSpec, folder: str, data: Path, progress: Progress) -> Fitted:
    """Train, from the last checkpoint if there is one, and return what is known of the training.

    Args:
        job: The job, with no default of its model left open.
        spec: The model, as the driver described it.
        folder: URL of the `out` folder.
        data: Folder of the prepared data. Where `folder` is on a disk, a cluster must share both.
        progress: Receives the progress.

    Raises:
        ConfigError: the cluster does not exist or is too small, or the memory is, whatever the mini-batch.
        Diverged: the loss is not finite.
        StorageError: a checkpoint cannot be written; those before it are kept.
        ClusterError: workers died again and again.
    """
    if read_fitted(folder) is None:
        resume = Checkpoints(folder).newest()
        settings = Settings(job, spec, folder, data, resume, job.train.budget_tokens, progress.step, progress.trained)
        if job.run.address == "inline":
            train_func(settings)
        else:
            _on_cluster(settings, progress)
    fitted = read_fitted(folder)
    assert fitted is not None  # noqa: S101  (the first rank has written it)
    return Fitted(**fitted)


def _on_cluster(settings: Settings, progress: Progress) -> None:
    from pipeline.execute.ray_data import connect, machines
    from pipeline.train.trainer import OutOfMemory

    progress.step("starting Ray")
    connect(settings.job.run.address)
    workers, gpus, cpus = worker_resources(settings.job, machines())
    device = f"{gpus} GPU" if gpus else f"{cpus} CPUs"
    progress.step(f"training on {workers} x {device}")
    if not storage.is_local(settings.folder):
        _upload(settings.data, settings.folder)
    failures = 0
    while True:
        try:
            _attempt(settings, progress, workers, gpus, cpus)
        except OutOfMemory as error:
            settings = replace(settings, budget_tokens=settings.budget_tokens // 2)
            progress.step(f"{error}; going on from the last checkpoint with {settings.budget_tokens:,}")
        except ClusterError as error:
            failures += 1
            if failures == _FAILURES:
                raise ClusterError(
                    f"{error}; {_FAILURES} times without a new checkpoint. Check the machines, then run the same command again: it "
                    f"goes on from the last checkpoint"
                ) from error
            progress.step(f"{error}; going on from the last checkpoint")
        else:
            return
        resume = Checkpoints(settings.folder).newest()
        failures = failures if resume == settings.resume else 0
        settings = replace(settings, resume=resume)


def worker_resources(job: Training, machines: list[Machine]) -> tuple[int, int, int]:
    """Return the number of workers, and the GPUs and CPUs of each.

    Raises:
        ConfigError: the machines do not have them, or the workers cannot share the rows of a step equally.
    """
    run = job.run
    usable = [each for each in machines if labelled(each.labels, run.labels or {})]
    gpus = sum(int(each.gpus) for each in usable)
    each_gpus = min(gpus, 1) if run.gpus_per_worker == "auto" else run.gpus_per_worker
    workers = (gpus if each_gpus else 1) if run.workers == "auto" else run.workers
    where = f"the machines{' with the labels of run.labels' if run.labels else ''}"
    if each_gpus:
        if workers > gpus or not gpus:
            raise ConfigError(f"run.workers is {workers}, and {where} of the cluster have {gpus} GPUs; lower it")
        cpus = 1
    else:
        most = max((int(each.cpus) for each in usable), default=0)
        fitting = (cpus for cpus in range(most, 0, -1) if sum(each.cpus // cpus for each in usable) >= workers)
        if (cpus := next(fitting, 0)) == 0:
            count = sum(int(each.cpus) for each in usable)
            raise ConfigError(f"run.workers is {workers}, and {where} of the cluster have {count} CPUs; lower it")
    if job.train.batch_rows % workers:
        raise ConfigError(
            f"train.batch_rows is {job.train.batch_rows}, and {workers} workers cannot share them equally; set run.workers, or "
            f"a multiple"
        )
    return workers, each_gpus, cpus


def _upload(data: Path, folder: str) -> None:
    """Copy the prepared data to the store, for workers on other machines."""
    for file in sorted(path for path in data.rglob("*") if path.is_file()):
        url = place(folder, data.name, str(file.relative_to(data)))
        if not storage.exists(url) or storage.stat(url).size_bytes != file.stat().st_size:
            storage.put(url, file.read_bytes())


def _attempt(settings: Settings, progress: Progress, workers: int, gpus: int, cpus: int) -> None:
    """Train once on Ray Train, and show the progress meanwhile."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths of the job stay what they are
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # errors are raised
    api: Any = ray.train  # its types are those of the version before
    board = ray.remote(num_cpus=0)(_Board).remote()
    settings = replace(settings, note=partial(_tell, board), report=partial(_count, board), gpu=gpus > 0, threads=cpus)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"settings": settings},
            scaling_config=api.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                label_selector=settings.job.run.labels,
            ),
            run_config=api.RunConfig(
                name="train",
                storage_path=scratch,
                failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=_STARTS),
                logging_config=api.LoggingConfig(log_level="CRITICAL"),
            ),
        )
        failed: list[BaseException] = []

        def run() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001  (raised below)
                failed.append(error)

        # Not in the main thread: there Ray would handle Ctrl-C, and end the command as if all was well.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            _show(board, progress)
    if failed:
        error = failed[0]
        raise _cause(error, workers) if isinstance(error, api.TrainingFailedError) else error


def _work(config: dict[str, Settings]) -> None:
    train_func(config["settings"])


class _Board:
    """Ray actor that workers write their progress to, and that the driver reads."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._done: tuple[int, int, float, str] | None = None

    def note(self, text: str) -> None:
        self._notes.append(text)

    def done(self, step: int, steps: int, loss: float, source: str) -> None:
        self._done = (step, steps, loss, source)

    def news(self) -> tuple[list[str], tuple[int, int, float, str] | None]:
        """Return what is new since the last call."""
        found = self._notes, self._done
        self._notes, self._done = [], None
        return found


def _tell(board: Any, text: str) -> None:
    board.note.remote(text)


def _count(board: Any, step: int, steps: int, loss: float, source: str) -> None:
    board.done.remote(step, steps, loss, source)


def _show(board: Any, progress: Progress) -> None:
    import ray

    try:
        notes, done = ray.get(board.news.remote())
    except ray.exceptions.RayError:  # the cluster is gone, which `fit` raises
        return
    for text in notes:
        progress.step(text)
    if done is not None:
        progress.trained(*done)


def _cause(error: Any, workers: int) -> BaseException:
    """Return the error of a worker that ended the training, translated if a worker died."""
    from ray.exceptions import RayActorError

    from pipeline.execute.ray_errors import root_error

    failures = getattr(error, "worker_failures", None)
    if not failures:
        return ClusterError(
            f"Ray Train could not start or watch the workers ({redact(getattr(error, 'controller_failure', error))})"
        )
    # An error of ours or of torch, inside an error of Ray Train.
    inner = [
        getattr(each, "_base_exc", None) or getattr(each, "health_check_failure", None) or each
        for each in failures.values()
    ]
    causes = [
        ClusterError("a worker of the training died: its memory was full, or its machine was lost")
        if isinstance(each, RayActorError)
        else root_error(each)
        for each in inner
    ]
    ours = [each for each in causes if isinstance(each, VectideError)]
    # The ranks that wait for one that died or failed fail too, with an error of torch.
    ours.sort(key=lambda each: isinstance(each, ClusterError))
    if ours:
        return ours[0]
    if workers > 1:
        return ClusterError(
            f"a worker of the training lost the others ({type(causes[0]).__name__}: {redact(causes[0])})"
        )
    return causes[0]
