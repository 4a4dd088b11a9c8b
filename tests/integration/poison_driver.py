"""A backfill whose workers die, raise or hang on request. Run as a script by the tests.

It uses the real stages; Ray's setup hook patches every worker process before its first task. POISON has the
instructions as JSON. `ray`: options of `ray.init`. `kills`, `raises`, `hangs`: token ids. `reader`: a text that kills
the process that reads it. `stuck`: units that hang in the read or write stage. `units`: for each stage, units whose first
attempt is SIGKILLed; `folder` has a file for each attempt that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import ray

from actors.errors import VectideError
from jobs.output import error
from jobs.progress import reporter
from pipeline.job.load import load_job
from pipeline.run.backfill import backfill


def poison() -> None:
    """Patch the stages of this worker process as POISON requests. Does not import torch: readers and writers do not."""
    from actors.schema import INPUT_IDS
    from actors.source import read_unit
    from actors.text.tokenizer import Tokenizer
    from actors.unit import writer
    from pipeline.execute.stages import read as read_stage
    from pipeline.execute.stages.encode import EncodeStage

    request = json.loads(os.environ["POISON"])
    tokenize, vectors = Tokenizer.tokenize, EncodeStage._vectors
    read, encode, write = read_unit.read_unit, EncodeStage._encode_range, writer._write_partitions

    def poisoned_vectors(self, rows):
        ids = set(rows.column(INPUT_IDS).combine_chunks().flatten().to_pylist())
        if ids & set(request.get("kills", ())):
            os._exit(9)
        if ids & set(request.get("raises", ())):
            raise RuntimeError("this text cannot be encoded")
        while ids & set(request.get("hangs", ())):
            time.sleep(1)
        return vectors(self, rows)

    def poisoned_tokenize(self, texts, tasks=None):
        if "reader" in request and any(request["reader"] in text for text in texts):
            os._exit(9)
        return tokenize(self, texts, tasks)

    def hang(stage: str, unit: int) -> None:
        while unit in request.get("stuck", {}).get(stage, ()):
            time.sleep(1)

    def die_once(stage: str, unit: int) -> None:
        """SIGKILL this process at the first attempt, which a file records."""
        if unit not in request.get("units", {}).get(stage, ()):
            return
        try:
            Path(request["folder"], f"{stage}-{unit}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_read(unit, source):
        die_once("read", unit.number)
        hang("read", unit.number)
        return read(unit, source)

    def dying_encode(self, work, low, high, attempt):
        encode(self, work, low, high, attempt)
        die_once("encode", attempt._key[1])

    def dying_write(batch, spec, attempt, written):
        files = write(batch, spec, attempt, written)
        die_once("write", batch.unit)  # its files exist, and no receipt refers to them
        hang("write", batch.unit)
        return files

    for owner, name, replacement in (
        (EncodeStage, "_vectors", poisoned_vectors),
        (EncodeStage, "_encode_range", dying_encode),
        (Tokenizer, "tokenize", poisoned_tokenize),
        (read_stage, "read_unit", dying_read),
        (writer, "_write_partitions", dying_write),
    ):
        setattr(owner, name, replacement)


if __name__ == "__main__":
    # The hook runs before the worker has the driver's path.
    environment = {"POISON": os.environ["POISON"], "PYTHONPATH": os.getcwd()}
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        **json.loads(os.environ["POISON"]).get("ray", {}),
        runtime_env={"worker_process_setup_hook": poison, "env_vars": environment},
    )
    try:
        with reporter() as report:
            outcome = backfill(load_job(sys.argv[1]), report)
    except VectideError as failure:
        error(str(failure))
        sys.exit(failure.exit_code)
    print(json.dumps({"rows": outcome.rows, "quarantined": outcome.quarantined, "deaths": outcome.deaths}))
