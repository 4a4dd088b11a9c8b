"""Executor that runs units inside this process.

Both executors run a unit through the same three stages. This one starts no processes, which is best for a few units and
for tests. The trade-off: a row that kills the process ends the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from actors.encoders.compute.environment import ENCODER_ENV
from actors.schema import RewriteUnit, Unit
from actors.unit.writer import WriterSpec
from pipeline.execute.attempts import AttemptLog, NoAttemptLog
from pipeline.execute.outcome import UnitOutcome, decode_outcome
from pipeline.execute.stages.encode import EncodeStage
from pipeline.execute.stages.read import read_and_tokenize
from pipeline.execute.stages.spec import StageSpec, to_block
from pipeline.execute.stages.write import rewrite, write
from pipeline.plan.resources import Pool


class InlineExecutor:
    """Runs units inside this process, one after the other; loads the model at the first text.

    Args:
        device: Device of the encoder, "cpu" or "cuda".
    """

    def __init__(self, device: str = "cpu") -> None:
        threads = os.cpu_count() or 1
        gpus = float(device != "cpu")
        self.pool = Pool(replicas=1, gpus=gpus, cpus=threads, threads=threads, io_cpus=1.0, device=device)
        self.attempt_log: AttemptLog = NoAttemptLog()
        for name, value in ENCODER_ENV.items():
            os.environ.setdefault(name, value)  # oneDNN reads them at the first matrix product

    def run(self, units: Iterable[Unit | RewriteUnit], spec: StageSpec) -> Iterator[UnitOutcome]:
        """See `Executor`."""
        encode = EncodeStage(spec, self.attempt_log, self.pool.threads, self.pool.device)
        for unit in units:
            yield decode_outcome(
                write(encode(read_and_tokenize(to_block(unit), spec, self.attempt_log)), spec, self.attempt_log)
            )

    def rewrite(self, units: Iterable[RewriteUnit], spec: WriterSpec, limit_s: float | None) -> Iterator[UnitOutcome]:
        """See `Executor`."""
        for unit in units:
            yield decode_outcome(rewrite(to_block(unit), spec, self.attempt_log, limit_s))
