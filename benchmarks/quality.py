"""Retrieval quality of a whole job: backfill a judged collection, search it with its own queries, report nDCG@10.

Run as `python -m benchmarks.quality --collection FOLDER --model NAME_OR_DIR`. The folder contains `docs.parquet` (id, title,
text), `queries.parquet` (id, text) and `qrels.parquet` (query, doc). What is measured is what a user gets: the stored,
rounded vectors and the search command's own path. The metric is ir-measures', which wraps trec_eval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import ir_measures
import pyarrow.parquet as pq
from ir_measures import Qrel, R, ScoredDoc, nDCG

from jobs.progress import reporter
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill
from pipeline.search.search import Searcher

K = 10


def ndcg(table: str, collection: Path) -> dict[str, float]:
    """nDCG@10 and recall@10 with binary relevance, over all queries that have a judgement."""
    queries = pq.read_table(collection / "queries.parquet").to_pylist()
    judged = pq.read_table(collection / "qrels.parquet").to_pylist()
    qrels = [Qrel(str(row["query"]), str(row["doc"]), 1) for row in judged]
    found = Searcher(table).search([row["text"] for row in queries], k=K)
    run = [
        ScoredDoc(str(query["id"]), hit.id, hit.score)
        for query, hits in zip(queries, found, strict=True)
        for hit in hits
    ]
    return {
        str(measure): float(value)
        for measure, value in ir_measures.calc_aggregate([nDCG @ K, R @ K], qrels, run).items()
    }


def main() -> None:
    """Backfill into a temporary table and print the metrics as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "int8"])
    parser.add_argument("--address", default="inline", help="run.address of the job")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, reporter() as progress:
        job = parse_job(
            {
                "source": {"uri": str(arguments.collection / "docs.parquet"), "id": "id", "text": ["title", "text"]},
                "table": {"uri": f"{folder}/table", "precision": arguments.precision},
                "encoder": {"model": arguments.model, "dtype": arguments.dtype},
                "run": {"address": arguments.address},
            }
        )
        outcome = backfill(job, progress)
        metrics = ndcg(outcome.table, arguments.collection)
    print(json.dumps({"rows": outcome.rows, "quarantined": outcome.quarantined, **metrics}))


if __name__ == "__main__":
    main()
