"""Evaluates models, or a table, by tasks of mteb, and compares two of them.

Called by `vectide evaluate --tasks`. mteb loads the data, runs each task and keeps the results in its own layout,
`<out>/results/<model>/<revision>/<Task>.json`: a task that is there is not run again. nDCG@10 of each query is kept in
`<out>/values/`, for the comparison. Imports mteb, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import mteb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models.model_meta import ModelMeta

from actors import storage
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, DataError
from pipeline.evaluate.embedded import EmbeddedTexts
from pipeline.evaluate.mteb_model import Found, ModelJudged, TableSearch, has_pictures
from pipeline.evaluate.mteb_words import WordsJudged
from pipeline.evaluate.result import write_result
from pipeline.evaluate.table import named
from pipeline.evaluate.tasks import need_data, single
from pipeline.execute.progress import Reporter
from pipeline.quality.bootstrap import Difference, mean_difference
from pipeline.quality.metrics import MAIN, retrieval_values
from pipeline.search.search import Searcher

_QUERY = "query"


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of a task.

    Attributes:
        main: Main measure of the task.
        scores: The main score, 0 to 1, of each model.
        difference: nDCG@10 of the second model less that of the first, over the queries; None if the task has none.
        words: The main score of words alone; None if it is not computed.
    """

    task: str
    type: str
    main: str
    scores: tuple[float, ...]
    difference: Difference | None = None
    words: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of an evaluation by tasks.

    Attributes:
        models: Names of the models, or of the table.
        encoded: Number of texts that were encoded for each; 0 if all were there.
        means: Mean of the main scores of each.
        difference: Mean of the second less that of the first, over the tasks; None if there is one model or one task.
        results: Folder of mteb's results.
    """

    models: tuple[str, ...]
    tasks: tuple[TaskScores, ...]
    encoded: tuple[int, ...]
    means: tuple[float, ...]
    difference: Difference | None
    results: str
    notes: tuple[str, ...] = ()


def judge(
    tasks: Sequence[Any],
    out: str,
    reporter: Reporter,
    *,
    models: Sequence[str] = (),
    settings: Sequence[str] = (),
    table: Searcher | None = None,
) -> Judgement:
    """Run the tasks that have no result yet, and return the scores of all.

    Args:
        tasks: Tasks of mteb.
        out: A local folder for results, values and the tables of embedded texts.
        reporter: Receives the progress of the backfills.
        models: Hub ids or local directories.
        settings: `key=value` of the job of the models.
        table: The table to search, in place of models.

    Raises:
        ConfigError: a task cannot be run, `out` is not local, or a setting is wrong.
        DataError: the data of a task cannot be loaded.
        VectideError: as for a backfill.
    """
    if not storage.is_local(storage.absolute(out)):
        raise ConfigError(f"--out {out!r} is not on this machine, and mteb writes to local folders; give one")
    _check(tasks, is_table=table is not None)
    folder, notes = storage.local_path(storage.absolute(out)), []
    names = [named(table)[0]] if table is not None else list(models)
    scores, encoded, values = [], [], []
    embedded = [EmbeddedTexts(name, settings, storage.absolute(out), reporter) for name in models if table is None]
    for each in embedded:
        _check_model(each.spec, tasks)
    need_data(tasks)
    for name, texts in zip_longest(names, embedded):
        kept = _Values(folder, tasks)
        judged: TableSearch | ModelJudged
        judged = ModelJudged(texts, kept.keep) if table is None else TableSearch(table, kept.keep)
        kept.model = judged.mteb_model_meta
        scores.append([_run(judged, task, folder, reporter) for task in tasks])
        encoded.append(0 if texts is None else texts.encoded)
        values.append([kept.read(task) for task in tasks])
        if texts is not None and texts.blank:
            notes.append(f"{texts.blank:,} documents have no text and cannot be found by {name}")
        notes += judged.notes if isinstance(judged, TableSearch) else []
    if table is None:
        beside = [task.metadata.name for task in single(tasks) if task.metadata.category == "t2it"]
        notes += [f"{name} has texts beside its pictures; only the pictures are embedded" for name in beside]
    rows = []
    for number, task in enumerate(tasks):
        of_task = tuple(each[number] for each in scores)
        rows.append(
            TaskScores(
                task.metadata.name,
                task.metadata.type,
                task.metadata.main_score,
                of_task,
                _difference(*(each[number] for each in values)) if len(names) == 2 else None,
                _words(task, folder, reporter, notes),
            )
        )
    means = tuple(float(np.mean(each)) for each in scores)
    over_tasks = (
        mean_difference(np.array(scores[1]), np.array(scores[0])) if len(names) == 2 and len(rows) > 1 else None
    )
    result = Judgement(
        tuple(names), tuple(rows), tuple(encoded), means, over_tasks, str(folder / "results"), tuple(notes)
    )
    write_result(out, " and ".join(names), asdict(result))
    return result


def _check(tasks: Sequence[Any], *, is_table: bool) -> None:
    """Refuse tasks that cannot be run."""
    for task in single(tasks):
        by_texts = isinstance(task, AbsTaskRetrieval) and (task.metadata.category or "").startswith("t2")
        if task.metadata.modalities != ["text"] and not (by_texts and has_pictures(task.metadata)):
            raise ConfigError(
                f"{task.metadata.name} is a task of {task.metadata.type} about {' and '.join(task.metadata.modalities)}; only "
                f"tasks of texts are evaluated, and those of finding pictures by texts. Leave it out (--dry-run prints its cost)"
            )
        if is_table and not isinstance(task, AbsTaskRetrieval):
            raise ConfigError(
                f"{task.metadata.name} is a task of {task.metadata.type}, and a table can only be searched; name the model "
                f"with --model and leave the table out"
            )


def _check_model(spec: ModelSpec, tasks: Sequence[Any]) -> None:
    """Refuse tasks with pictures for a model that takes texts only."""
    for task in single(tasks):
        if has_pictures(task.metadata):
            try:
                spec.seeing()
            except ConfigError as error:
                raise ConfigError(
                    f"the documents of {task.metadata.name} are pictures, and {error} Leave the task out, or name a model that "
                    f"sees, such as jinaai/jina-embeddings-v4"
                ) from None
            return


def _words(task: Any, folder: Path, reporter: Reporter, notes: list[str]) -> float | None:
    """Return the score of words alone; None, and a note, if it is not computed."""
    name = task.metadata.name
    if any(has_pictures(each.metadata) for each in single([task])):
        return None
    if find_spec("bm25s") is None:
        notes.append(f"{name} has no score of words alone: install bm25s with pip install 'vectide[evaluate]'")
        return None
    try:
        return _run(WordsJudged(), task, folder, reporter)
    except DataError as error:
        notes.append(f"{name} has no score of words alone: {error}")
        return None


def _run(judged: TableSearch | ModelJudged | WordsJudged, task: Any, folder: Path, reporter: Reporter) -> float:
    reporter.step(f"{task.metadata.name}")
    try:
        found = mteb.evaluate(
            cast("Any", judged),  # its protocols name every argument, and we take some by **
            task,
            cache=mteb.ResultCache(folder),
            encode_kwargs={"batch_size": 1024, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    except (ConnectionError, FileNotFoundError, DatasetNotFoundError) as error:
        raise DataError(
            f"the data of {task.metadata.name} ({task.metadata.dataset['path']}) cannot be loaded: "
            f"{' '.join(str(error).split())[:200]}. Run `vectide evaluate --prefetch` with the same --tasks on a machine with "
            f"internet, and copy its cache of Hugging Face here"
        ) from error
    if not found.task_results:  # a private task, to whose data this user has no access
        reasons = "; ".join(error.exception for error in found.exceptions or ())
        raise DataError(f"{task.metadata.name} cannot be run: {reasons}")
    return float(found.task_results[0].get_score())


class _Values:
    """nDCG@10 of each query of a model, in a file for each task, subset and split.

    Attributes:
        model: What mteb records of the model.
    """

    model: ModelMeta

    def __init__(self, folder: Path, tasks: Sequence[Any]) -> None:
        self._folder = folder
        self._tasks = {task.metadata.name: task for task in single(tasks)}

    def keep(self, name: str, subset: str, split: str, found: Found) -> None:
        """Write the values of what was found, as mteb scores it."""
        task = self._tasks[name]
        judgements = {
            query: each for query, each in task.dataset[subset][split]["relevant_docs"].items() if query in found
        }
        if task.ignore_identical_ids:
            found = {
                query: {row: score for row, score in each.items() if row != query} for query, each in found.items()
            }
        if task.skip_first_result:
            found = {query: _without_first(each) for query, each in found.items()}
        path = self._path(name) / f"{subset}-{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({_QUERY: list(judgements), MAIN: retrieval_values(judgements, found)[MAIN]}), path)

    def read(self, task: Any) -> pa.Table | None:
        """Return the values of all queries of a task; None if it has none."""
        parts = [
            table.append_column("part", pa.array([f"{each.metadata.name}/{path.name}"] * table.num_rows))
            for each in single([task])
            for path in sorted(self._path(each.metadata.name).glob("*.parquet"))
            for table in (pq.read_table(path),)
        ]
        return pa.concat_tables(parts) if parts else None

    def _path(self, name: str) -> Path:
        meta = self.model
        model = self._folder / "values" / meta.model_name_as_path() / str(meta.revision)
        return model / (meta.experiment_name or "") / name


def _without_first(found: dict[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda pair: pair[1], reverse=True)[1:])


def _difference(old: pa.Table | None, new: pa.Table | None) -> Difference | None:
    """Return the difference of the values of the same queries."""
    if old is None or new is None:
        return None
    both = old.join(new, keys=["part", _QUERY], right_suffix=" new", join_type="inner").sort_by(
        [("part", "ascending"), (_QUERY, "ascending")]
    )
    if not both.num_rows:
        return None
    return mean_difference(both[f"{MAIN} new"].to_numpy(), both[MAIN].to_numpy())
