"""A cache of Hugging Face's `datasets` as a download leaves it, with rows of our own in place of those of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def cache_dataset(cache: Path, task: Any, configs: dict[str, dict[str, pa.Table]]) -> None:
    """Fill the cache with the data of a task of mteb.

    Args:
        cache: The folder that `HF_DATASETS_CACHE` names.
        task: The task, whose data has a path and a revision.
        configs: The rows by config and split, as the hub has them.
    """
    from datasets.packaged_modules.parquet.parquet import Parquet

    owner, name = task.metadata.dataset["path"].split("/")
    for config, splits in configs.items():
        scratch = cache / "scratch" / name / config
        scratch.mkdir(parents=True)
        files = {}
        for split, rows in splits.items():
            files[split] = [str(scratch / f"{split}.parquet")]
            pq.write_table(rows, files[split][0])
        builder = Parquet(cache_dir=str(scratch), dataset_name=name, config_name=config, data_files=files)
        folder = cache / f"{owner}___{name}" / config / "0.0.0" / task.metadata.dataset["revision"]
        builder.download_and_prepare(output_dir=str(folder))
    shutil.rmtree(cache / "scratch")
