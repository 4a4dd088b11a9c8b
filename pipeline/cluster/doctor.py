"""Checks a machine or a cluster before it is trusted with a run: one finding a line, with the way out.

Called by `jobs doctor`. With a job file it checks what that job needs; without one, what any job would.
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
from pipeline.job.config import Job
from pipeline.ledger.ledger import FOLDER
from pipeline.plan.resources import size_pool
from pipeline.plan.throughput import has_bfloat16, processor_flags
from pipeline.table import delta_table

_LIBRARIES = ("ray", "torch", "transformers", "pyarrow", "deltalake", "fsspec", "s3fs")
_SHARED = Path("/dev/shm")  # noqa: S108  (where Ray keeps its object store)
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Literal["ok", "note", "bad"]
    text: str


def examine(job: Job | None) -> list[Finding]:
    """Everything, in an order that tells what to mend first."""
    findings: list[Finding] = [_python(), _libraries(), _processor(), _kernels(), _memory(), _gpus()]
    if job is None:
        findings.append(_guarded("storage", _local_storage))
        return findings
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("model", lambda: _model(job)),
        ("source", lambda: _source(job)),
        ("table", lambda: _table(job)),
        ("storage", lambda: _storage(job)),
        ("ray", lambda: _ray(job)),
    ]
    findings += [_guarded(what, check) for what, check in checks]
    return findings


def _guarded(what: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except VectideError as error:
        return Finding(what, "bad", str(error))


def _python() -> Finding:
    text = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "bad", text)


def _libraries() -> Finding:
    found, missing = [], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "libraries", "bad", f"{', '.join(missing)} not installed; run `pip install -e . -c constraints.txt`"
        )
    return Finding("libraries", "ok", ", ".join(found))


def _processor() -> Finding:
    flags = processor_flags()
    there = [flag for flag in _FLAGS if flag in flags]
    text = f"{os.cpu_count()} cores, {platform.machine()}, {', '.join(there) or 'no vector extensions seen'}"
    if not has_bfloat16():
        return Finding("processor", "note", f"{text}: without native bfloat16, dtype auto is float32 on CPUs")
    return Finding("processor", "ok", f"{text}: dtype auto is bfloat16 on CPUs")


def _kernels() -> Finding:
    from actors import kernels

    found = kernels.find()
    if found is not None:
        return Finding("kernels", "ok", f"vectide's own loops for CPUs, of {found.name}")
    if not processor_flags() >= {"avx2", "fma"}:
        return Finding(
            "kernels", "note", "none for this processor: encoders on CPUs use torch's operations, which are slower"
        )
    return Finding(
        "kernels",
        "note",
        "not built, or built of other sources: encoders on CPUs use torch's operations, up to twice as slow. Install a C "
        "compiler, then vectide again",
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    shared = shutil.disk_usage(_SHARED).free / 2**30 if _SHARED.is_dir() else 0.0
    text = f"{total:.1f} GiB, {shared:.1f} GiB free in /dev/shm for Ray's object store"
    if shared < 1:
        return Finding("memory", "note", f"{text}: under 1 GiB makes Ray spill to disk; mount a larger /dev/shm")
    return Finding("memory", "ok" if total >= 4 else "note", text)


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpus", "note", "none that torch sees; encoders run on CPUs")
    names = [
        f"{torch.cuda.get_device_name(index)} ({torch.cuda.mem_get_info(index)[1] / 2**30:.0f} GiB)"
        for index in range(torch.cuda.device_count())
    ]
    return Finding("gpus", "ok", ", ".join(names))


def _model(job: Job) -> Finding:
    from pipeline.run.context import describe_model

    spec = describe_model(job)
    return Finding("model", "ok", f"{spec.model}: {spec.family}, {spec.dim} dimensions, up to {spec.max_tokens} tokens")


def _source(job: Job) -> Finding:
    from pipeline.plan.corpus import list_corpus, survey

    listing = list_corpus(job)
    found = survey(job, listing.shards)
    count, size_mib = len(found.shards), sum(shard.size_bytes for shard in found.shards) / 2**20
    size = f"{size_mib / 1024:,.1f} GiB" if size_mib >= 1024 else f"{size_mib:,.1f} MiB"
    text = f"{count:,} shard{'s' * (count != 1)}, {size}, has every column that the job names"
    if listing.left_out:
        left = "; ".join(each.sentence() for each in listing.left_out)
        return Finding("source", "note", f"{text}. Left out: {left}")
    return Finding("source", "ok", text)


def _table(job: Job) -> Finding:
    url = storage.absolute(job.table.uri)
    table = delta_table.open_table(url)
    if table is None:
        return Finding("table", "ok", f"nothing at {url} yet")
    if delta_table.embedding_spec_of(table) is None:
        return Finding(
            "table", "bad", f"{url} is a Delta table that vectide did not make; give table.uri another place"
        )
    return Finding("table", "ok", f"{url} is at version {table.version()}")


def _storage(job: Job) -> Finding:
    return _probe(storage.join(storage.absolute(job.table.uri), FOLDER, "probes"))


def _local_storage() -> Finding:
    return _probe(storage.absolute(".vectide-probe"))


def _probe(folder: str) -> Finding:
    from pipeline.ledger.create_probe import RACERS, probe_create

    existed = storage.is_local(folder) and _existing(Path(folder))
    try:
        probe_create(folder)
    finally:
        if existed is not False:
            _remove_empty(Path(folder), existed)
    return Finding("storage", "ok", f"an exclusive create has one winner of {RACERS} ({folder})")


def _existing(folder: Path) -> Path:
    """The nearest folder above that was there before the probe."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _remove_empty(folder: Path, keep: Path) -> None:
    """Take away the empty folders that the probe made: a check leaves nothing behind."""
    for here in _upwards(folder, keep):
        try:
            here.rmdir()
        except OSError:
            return


def _upwards(folder: Path, keep: Path) -> Iterator[Path]:
    while folder != keep:
        yield folder
        folder = folder.parent


def _ray(job: Job) -> Finding:
    if job.run.address == "inline":
        return Finding("ray", "note", "run.address is inline: units run inside this process, without Ray")
    import ray

    from pipeline.execute import ray_data

    joined = ray.is_initialized()
    ray_data.connect(job.run.address)
    try:
        machines = ray_data.machines()
        pool = size_pool(job.run, machines)
    finally:
        if not joined:
            ray.shutdown()
    return Finding(
        "ray",
        "ok",
        f"{len(machines)} nodes, {sum(one.cpus for one in machines):g} CPUs, {sum(one.gpus for one in machines):g} GPUs: "
        f"{pool.count()} replica{'s' * (pool.count() != '1')} on {pool.device}",
    )
