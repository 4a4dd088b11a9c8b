"""A plain loop over files in one process, with sentence-transformers and all cores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.race.ways.results import print_result, since_start


def main(corpus: str, out: str, model: str, max_tokens: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    encoder = SentenceTransformer(model, device="cpu")
    encoder.max_seq_length = int(max_tokens)
    started = since_start()
    (Path(out) / "table").mkdir(parents=True)
    came: list[tuple[float, int]] = []
    for path in sorted(Path(corpus).glob("*.parquet")):
        table = pq.read_table(path)
        vectors = encoder.encode(table["text"].to_pylist(), batch_size=32, show_progress_bar=False)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        pq.write_table(table.append_column("embedding", column), Path(out) / "table" / path.name)
        came.append((since_start(), table.num_rows))
    parts = {
        "imports, model": started,
        "first file": came[0][0] - started,
        "all other files": came[-1][0] - came[0][0],
    }
    print_result(rows=sum(rows for _, rows in came), out=came, parts=parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
