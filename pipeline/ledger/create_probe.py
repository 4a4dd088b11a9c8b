"""Finds out whether a store keeps the promise that the ledger stands on: an exclusive create has one winner.

Called at the start of each run and by the doctor. Documentation does not say: some stores answer right when asked twice
in sequence and still let several racing callers win, so the probe is a race. It costs one object and `RACERS` requests.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from actors import storage
from actors.errors import UnsafeStore

RACERS = 16
ROUNDS = 4


def probe_create(folder: str, *, racers: int = RACERS, rounds: int = ROUNDS) -> None:
    """Let `racers` callers create one object at once, `rounds` times over.

    Args:
        folder: URL of a folder that may be written; the probe's objects are removed again.
        racers: Callers of a round.
        rounds: How often to race.

    Raises:
        UnsafeStore: a round had not exactly one winner, or the object is not the winner's.
        StorageError: the store refused or failed.
    """
    for _ in range(rounds):
        url = storage.join(folder, f"probe-{secrets.token_hex(8)}")
        gate = threading.Barrier(racers)

        def race(number: int, url: str = url, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return storage.create(url, f"racer {number}".encode())

        with ThreadPoolExecutor(racers) as pool:
            won = list(pool.map(race, range(racers)))
        try:
            there = storage.read(url).decode()
        finally:
            storage.delete(url)
        if sum(won) != 1 or there != f"racer {won.index(True)}":
            raise UnsafeStore(
                f"{folder!r} does not honour an exclusive create: {sum(won)} of {racers} racing callers were told that "
                f"they had won. Two drivers could both publish there. Use a store that does (a local disk, AWS S3, "
                f"Ceph >= 16, MinIO, GCS, Azure Blob)"
            )
