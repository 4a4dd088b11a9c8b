"""One way to find buckets of near copies, in a process of its own: shingles, MinHash signatures and keys of bands.

Started as `python -m benchmarks.race.workers.minhash WAY FILE BANDS LENGTH`, where FILE has normalised texts, a JSON string a
line. Shingles are five characters, and a signature has BANDS * LENGTH places. The answer is a line with the CPU seconds
and the number of different keys of all bands.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

N = 5


def shingles(text: str) -> set[str]:
    """Return the shingles of a text, as a person writes it in Python."""
    return {text[start : start + N] for start in range(len(text) - N + 1)}


def by_vectide(texts: list[str], bands: int, length: int) -> Iterator[Any]:
    """Our step: numpy and rensa, many texts at a time."""
    from pipeline.curate.steps.shingles import Shingles, band_keys

    kind = Shingles("characters", N)
    for first in range(0, len(texts), 1024):
        keys = band_keys(kind.signatures(texts[first : first + 1024], bands * length), bands, length)
        yield from keys


def by_datasketch(texts: list[str], bands: int, length: int) -> Iterator[Any]:
    """`MinHash.bulk`, and the keys that `MinHashLSH` makes."""
    from datasketch import MinHash

    sets = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    for made in MinHash.bulk(sets, num_perm=bands * length):
        parts = (made.hashvalues[band * length : (band + 1) * length] for band in range(bands))
        yield [bytes(part.byteswap().data) for part in parts]


def by_datatrove(texts: list[str], bands: int, length: int) -> Iterator[Any]:
    """Hashes and signatures of `MinhashDedupSignature`; its shingles are words, so characters are cut here."""
    import numpy as np
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupSignature,
        create_hash_func,
    )

    step = MinhashDedupSignature.__new__(MinhashDedupSignature)  # without its tokenizer of words
    step.config = MinhashConfig(n_grams=N, num_buckets=bands, hashes_per_bucket=length)
    step.num_hashes, step._parameters = bands * length, None  # noqa: SLF001
    hash_of = create_hash_func(step.config.hash_config)
    for text in texts:
        hashes = np.fromiter((hash_of(shingle) for shingle in shingles(text)), np.uint64).reshape(-1, 1)
        yield [tuple(part) for part in step.get_signature(hashes)]


WAYS = {"vectide": by_vectide, "datasketch": by_datasketch, "datatrove": by_datatrove}


def main() -> None:
    """Run one way."""
    way, path, bands, length = sys.argv[1:]
    texts = [json.loads(line) for line in Path(path).read_text().splitlines()]
    made = WAYS[way]
    list(made(texts[:100], int(bands), int(length)))  # imports
    started = time.process_time()
    rows = list(made(texts, int(bands), int(length)))
    seconds = time.process_time() - started
    keys = {(band, key) for row in rows for band, key in enumerate(list(row))}
    print(json.dumps({"s": seconds, "keys": len(keys)}))


if __name__ == "__main__":
    main()
