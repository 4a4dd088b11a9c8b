"""Checks a machine or a cluster before a run: one finding a check, with the fix.

Called by `vectide doctor`. With a job file it checks what that job needs; without one, what every job needs.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from actors import storage
from actors.errors import VectideError
from actors.quantities import counted, format_bytes
from pipeline.job.config import Job
from pipeline.job.curation import Curation
from pipeline.job.load import AnyJob, result_uri
from pipeline.job.training import Training
from pipeline.ledger.ledger import FOLDER
from pipeline.plan.resources import Machine, size_pool
from pipeline.plan.throughput import has_bfloat16, processor_flags
from pipeline.table import delta_table

_LIBRARIES = ("ray", "torch", "transformers", "pyarrow", "deltalake", "fsspec", "s3fs")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Ray keeps its object store)
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        what: Name of the check.
        level: "bad" if a run would fail, "note" if it would be slow or limited, else "ok".
        text: What was found, and the fix where there is one.
    """

    what: str
    level: Literal["ok", "note", "bad"]
    text: str


def examine(job: AnyJob | None) -> list[Finding]:
    """Run all checks. The findings are in the order in which to fix them."""
    findings: list[Finding] = [_python(), _libraries(), _processor(), _kernels(), _memory(), _gpus()]
    if job is None:
        findings.append(_run_check("storage", _local_storage))
        return findings
    checks: list[tuple[str, Callable[[], Finding]]]
    if isinstance(job, Curation):
        checks = [("curation", lambda: _curation(job))]
    elif isinstance(job, Training):
        checks = [("training", lambda: _training(job))]
    else:
        checks = [("model", lambda: _model(job)), ("source", lambda: _source(job)), ("table", lambda: _table(job))]
    checks += [("storage", lambda: _storage(job)), ("ray", lambda: _ray(job))]
    findings += [_run_check(what, check) for what, check in checks]
    return findings


def _run_check(what: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except VectideError as error:
        return Finding(what, "bad", str(error))


def _python() -> Finding:
    text = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "bad", text)


def _libraries() -> Finding:
    installed, missing = [], []
    for name in _LIBRARIES:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "libraries", "bad", f"{', '.join(missing)} not installed; run `pip install -e . -c constraints.txt`"
        )
    return Finding("libraries", "ok", ", ".join(installed))


def _processor() -> Finding:
    flags = processor_flags()
    supported = [flag for flag in _VECTOR_FLAGS if flag in flags]
    text = f"{os.cpu_count()} cores, {platform.machine()}, {', '.join(supported) or 'no vector extensions'}"
    if not has_bfloat16():
        return Finding("processor", "note", f"{text}: without native bfloat16, dtype auto is float32 on CPUs")
    return Finding("processor", "ok", f"{text}: dtype auto is bfloat16 on CPUs")


def _kernels() -> Finding:
    from actors import kernels

    library = kernels.find()
    if library is not None:
        return Finding("kernels", "ok", f"vectide's CPU kernels, from {library.name}")
    if not processor_flags() >= {"avx2", "fma"}:
        return Finding(
            "kernels", "note", "none for this processor: encoders on CPUs use torch's operations, which are slower"
        )
    return Finding(
        "kernels",
        "note",
        "not built, or built from other sources: encoders on CPUs use torch's operations, up to twice as slow. Install a C "
        "compiler, then reinstall vectide",
    )


def _memory() -> Finding:
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    shared_gib = shutil.disk_usage(_SHARED_MEMORY).free / 2**30 if _SHARED_MEMORY.is_dir() else 0.0
    text = f"{total_gib:.1f} GiB, {shared_gib:.1f} GiB free in /dev/shm for Ray's object store"
    if shared_gib < 1:
        return Finding("memory", "note", f"{text}: with under 1 GiB, Ray spills to disk; mount a larger /dev/shm")
    return Finding("memory", "ok" if total_gib >= 4 else "note", text)


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpus", "note", "torch sees none; encoders run on CPUs")
    names = [
        f"{torch.cuda.get_device_name(index)} ({torch.cuda.mem_get_info(index)[1] / 2**30:.0f} GiB)"
        for index in range(torch.cuda.device_count())
    ]
    return Finding("gpus", "ok", ", ".join(names))


def _model(job: Job) -> Finding:
    from pipeline.run.context import describe_model

    spec = describe_model(job)
    return Finding("model", "ok", f"{spec.model}: {spec.family}, {spec.dim} dimensions, up to {spec.max_tokens} tokens")


def _curation(job: Curation) -> Finding:
    from pipeline.curate.plan import plan_curation

    planned = plan_curation(job)
    table = "no table yet" if planned.version is None else f"table at version {planned.version}"
    rows = f"{counted(planned.rows, 'row')} in {counted(planned.shards, 'shard')}"
    text = f"{rows}, {format_bytes(planned.source_bytes)}; steps: {'; '.join(planned.steps)}; {table}"
    return Finding("curation", "note" if planned.left_out else "ok", text)


def _training(job: Training) -> Finding:
    from pipeline.train.plan import plan_training

    planned = plan_training(job)
    text = f"{planned.model}; {planned.stage}; {counted(planned.rows, 'row')}, {counted(planned.steps, 'step')}"
    return Finding("training", "ok", text)


def _source(job: Job) -> Finding:
    from pipeline.plan.corpus import list_corpus, model_for, survey
    from pipeline.run.context import describe_model

    listing = list_corpus(job)
    model = model_for(job, listing.shards, describe_model(job))
    shards = survey(job, listing.shards, modality=model.modality, settings=model.pictures).shards
    count, size = len(shards), format_bytes(sum(shard.size_bytes for shard in shards))
    text = f"{counted(count, 'shard')}, {size}, has every column that the job names"
    if listing.left_out:
        left_out = "; ".join(each.sentence() for each in listing.left_out)
        return Finding("source", "note", f"{text}. Left out: {left_out}")
    return Finding("source", "ok", text)


def _table(job: Job) -> Finding:
    url = storage.absolute(job.table.uri)
    table = delta_table.open_table(url)
    if table is None:
        return Finding("table", "ok", f"nothing at {url} yet")
    if delta_table.embedding_spec_of(table) is None:
        return Finding(
            "table", "bad", f"{url} is a Delta table that vectide did not make; set table.uri to another place"
        )
    return Finding("table", "ok", f"{url} is at version {table.version()}")


def _storage(job: AnyJob) -> Finding:
    return _probe(storage.join(storage.absolute(result_uri(job)), FOLDER, "probes"))


def _local_storage() -> Finding:
    return _probe(storage.absolute(".vectide-probe"))


def _probe(folder: str) -> Finding:
    from pipeline.ledger.create_probe import RACERS, probe_create

    parent = _nearest_existing(Path(folder)) if storage.is_local(folder) else None
    try:
        probe_create(folder)
    finally:
        if parent is not None:
            _remove_empty(Path(folder), parent)
    return Finding("storage", "ok", f"of {RACERS} concurrent exclusive creates, one succeeds ({folder})")


def _nearest_existing(folder: Path) -> Path:
    """Return the nearest parent folder that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _remove_empty(folder: Path, keep: Path) -> None:
    """Remove the empty folders that the probe created below `keep`."""
    for empty in _parents_below(folder, keep):
        try:
            empty.rmdir()
        except OSError:
            return


def _parents_below(folder: Path, keep: Path) -> Iterator[Path]:
    while folder != keep:
        yield folder
        folder = folder.parent


def _ray(job: AnyJob) -> Finding:
    if job.run.address == "inline":
        return Finding("ray", "note", "run.address is inline: the work runs inside this process, without Ray")
    import ray

    from pipeline.execute import ray_data

    was_connected = ray.is_initialized()
    ray_data.connect(job.run.address)
    try:
        machines = ray_data.machines()
        workers = _workers(job, machines)
    finally:
        if not was_connected:
            ray.shutdown()
    return Finding(
        "ray",
        "ok",
        f"{len(machines)} nodes, {sum(node.cpus for node in machines):g} CPUs, {sum(node.gpus for node in machines):g} GPUs: "
        f"{workers}",
    )


def _workers(job: AnyJob, machines: list[Machine]) -> str:
    """Return the processes that a job would have on the machines."""
    if isinstance(job, Training):
        from pipeline.train.on_ray import worker_resources

        workers, gpus, cpus = worker_resources(job, machines)
        return f"{counted(workers, 'worker')} with {counted(gpus, 'GPU') if gpus else counted(cpus, 'CPU')} each"
    pool = size_pool(job.run, machines)
    return f"{pool.count()} replica{'s' * (pool.count() != '1')} on {pool.device}"
