"""A backfill whose workers die, raise or hang on texts that say so. Run as a script by test_poison.py.

The real encoder with one instruction more: Ray's own hook puts it into every worker process before any task runs.
"""

from __future__ import annotations

import json
import os
import sys

import ray

from jobs.progress import reporter
from pipeline.config import load_job
from pipeline.run import backfill


def poison() -> None:
    """Make the reader and the encoder of this process die or raise on marked texts."""
    from actors.encoders.encoder import Encoder
    from actors.tokenizer import Tokenizer

    tokenize, encode = Tokenizer.tokenize, Encoder.encode_tokens
    kills, raises = (json.loads(os.environ[name]) for name in ("POISON_KILLS", "POISON_RAISES"))

    def dying(self, ids, tasks=None):
        for row in ids.to_pylist():
            if row in kills:
                os._exit(9)
            if row in raises:
                raise RuntimeError("this text cannot be encoded")
        return encode(self, ids, tasks)

    def dying_early(self, texts, tasks=None):
        if os.environ.get("POISON_READER") and any("reader dies" in text for text in texts):
            os._exit(9)
        return tokenize(self, texts, tasks)

    setattr(Encoder, "encode_tokens", dying)  # noqa: B010  (a plain assignment is what mypy refuses)
    setattr(Tokenizer, "tokenize", dying_early)  # noqa: B010


if __name__ == "__main__":
    names = ("POISON_KILLS", "POISON_RAISES", "POISON_READER")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment["PYTHONPATH"] = os.getcwd()  # the hook runs before the worker has the driver's path
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": poison, "env_vars": environment},
    )
    with reporter() as told:
        outcome = backfill(load_job(sys.argv[1]), told)
    print(json.dumps({"rows": outcome.rows, "quarantined": outcome.quarantined, "deaths": outcome.deaths}))
