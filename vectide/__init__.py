"""The front door for Python users. Commands have the same names: `vectide backfill` is `backfill`.

job = load_job("job.yaml")
backfill(job)
hits = Searcher("s3://lake/wiki").search(["how do tides work"])
"""

from actors.encoders import load_encoder
from actors.vectors import vectors_of
from pipeline.curate.run import curate
from pipeline.evaluate.table import evaluate
from pipeline.job.config import Job
from pipeline.job.curation import Curation
from pipeline.job.load import load_curation, load_job, load_training
from pipeline.job.training import Training
from pipeline.report.page import report
from pipeline.run.backfill import backfill
from pipeline.run.estimate import estimate as plan
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table.changes import iter_changes
from pipeline.table.export import changes
from pipeline.table.status import status
from pipeline.train.run import train

__all__ = [
    "Curation",
    "Job",
    "Searcher",
    "Training",
    "backfill",
    "changes",
    "curate",
    "evaluate",
    "iter_changes",
    "load_curation",
    "load_encoder",
    "load_job",
    "load_training",
    "plan",
    "refresh",
    "report",
    "status",
    "train",
    "vectors_of",
]
