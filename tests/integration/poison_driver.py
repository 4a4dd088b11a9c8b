"""A backfill whose workers die, raise or hang where they are told to. Run as a script by the tests.

The real stages with one instruction more: Ray's own hook puts it into every worker process before any task runs. What
to do is JSON in POISON: `ray` are options of `ray.init`, `kills`, `raises` and `hangs` name tokens, `reader` a text that
kills its reader, `stuck` for reading and writing the units that hang, and `units` for each stage the units whose first
attempt is SIGKILLed in the middle, as `folder` remembers.
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
    """Make this worker process do what POISON says. Nothing here loads torch: readers and writers do not either."""
    from actors.schema import INPUT_IDS
    from actors.source import read_unit
    from actors.text.tokenizer import Tokenizer
    from actors.unit import writer
    from pipeline.execute.stages import read as read_stage
    from pipeline.execute.stages.encode import EncodeStage

    told = json.loads(os.environ["POISON"])
    tokenize, vectors = Tokenizer.tokenize, EncodeStage._vectors
    read, encode, write = read_unit.read_unit, EncodeStage._encode_range, writer._write_partitions

    def poisoned_vectors(self, rows):
        seen = set(rows.column(INPUT_IDS).combine_chunks().flatten().to_pylist())
        if seen & set(told.get("kills", ())):
            os._exit(9)
        if seen & set(told.get("raises", ())):
            raise RuntimeError("this text cannot be encoded")
        while seen & set(told.get("hangs", ())):
            time.sleep(1)
        return vectors(self, rows)

    def poisoned_tokenize(self, texts, tasks=None):
        if "reader" in told and any(told["reader"] in text for text in texts):
            os._exit(9)
        return tokenize(self, texts, tasks)

    def hang(stage: str, unit: int) -> None:
        while unit in told.get("stuck", {}).get(stage, ()):
            time.sleep(1)

    def die_once(stage: str, unit: int) -> None:
        """SIGKILL at the first attempt; a file remembers that it was made."""
        if unit not in told.get("units", {}).get(stage, ()):
            return
        try:
            Path(told["folder"], f"{stage}-{unit}").touch(exist_ok=False)
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

    def dying_write(parcel, spec, attempt, written):
        files = write(parcel, spec, attempt, written)
        die_once("write", parcel.unit)  # its files are there, and no receipt names them
        hang("write", parcel.unit)
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
