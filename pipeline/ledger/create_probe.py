"""Checks that an exclusive create of a store has one winner, which the ledger relies on.

Called at the start of each run and by the doctor. Some stores answer correctly when two creates come in sequence and
still let several concurrent callers win, so the probe is a race. A round costs one object and `RACERS` requests.
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
    """Let `racers` concurrent callers create one object, `rounds` times.

    Args:
        folder: URL of a writable folder; the objects of the probe are removed again.
        racers: Number of callers in a round.
        rounds: Number of rounds.

    Raises:
        UnsafeStore: a round did not have exactly one winner, or the object is not the winner's.
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
            content = storage.read(url).decode()
        finally:
            storage.delete(url)
        if sum(won) != 1 or content != f"racer {won.index(True)}":
            raise UnsafeStore(
                f"{folder!r} does not honour an exclusive create: {sum(won)} of {racers} racing callers got the answer that "
                f"they had created the object. Two drivers could both publish there. Use a store that does (a local disk, AWS S3, "
                f"Ceph >= 16, MinIO, GCS, Azure Blob)"
            )
