"""Daft's `embed_text` with its transformers provider, from Parquet to Parquet."""

from __future__ import annotations

import sys

import daft
from daft.functions import embed_text

from benchmarks.race.ways.results import print_result, since_start


def main(corpus: str, out: str, model: str, max_tokens: str) -> None:
    del max_tokens  # the provider takes the checkpoint's own limit
    started = since_start()
    frame = daft.read_parquet(f"{corpus}/*.parquet")
    frame = frame.with_column("embedding", embed_text(frame["text"], provider="transformers", model=model))
    frame.write_parquet(f"{out}/table")
    done = since_start()
    rows = daft.read_parquet(f"{out}/table/*.parquet").count_rows()
    print_result(rows=rows, out=[(done, rows)], parts={"imports": started, "all": done - started})


if __name__ == "__main__":
    main(*sys.argv[1:])
