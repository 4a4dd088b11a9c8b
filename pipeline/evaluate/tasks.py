"""Tasks of mteb: chosen by name, with their cost and their data, before any model is loaded.

Imports mteb, which takes seconds, so only the evaluation of tasks imports this module.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import mteb
from datasets.naming import camelcase_to_snakecase
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.benchmarks.get_benchmark import get_benchmarks
from mteb.get_tasks import _TASKS_REGISTRY

from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, DataError
from actors.inputs import prepare_texts
from pipeline.run.estimate import BASIS, rate_of

# Characters of a token, roughly: mteb counts characters, and the texts may not be there.
_LATIN, _OTHERS = 4.0, 2.0
_MEASURED = 64  # texts
_PIXELS = 28 * 28  # of a token of a picture
_MOST_PIXELS = 768 * _PIXELS  # of a picture, in the models of Jina


@dataclass(frozen=True, slots=True)
class Cost:
    """What a task takes, by mteb's own statistics.

    Attributes:
        texts: Different texts to encode; None if mteb has no statistics of the task.
        pictures: Pictures to encode.
        tokens: Tokens of all, roughly.
        seconds: Time of the encoder; None if its rate is not known.
        price: Price of that time; None if none was given.
        data: "here", "missing", or the revision that is here in place of the wanted one.
    """

    task: str
    type: str
    texts: int | None
    pictures: int
    characters: int
    tokens: int
    seconds: float | None
    price: float | None
    data: str


def choose(names: Sequence[str]) -> list[Any]:
    """Return the tasks of some benchmarks and tasks, each once.

    Raises:
        ConfigError: a name is that of neither, or there is no name.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()  # it warns of each file that comes from the cache
    found: dict[str, Any] = {}
    for name in names:
        try:
            tasks = [mteb.get_task(name)]
        except KeyError:
            try:
                tasks = list(mteb.get_benchmark(name).tasks)
            except KeyError:
                known = [*(each.name for each in get_benchmarks()), *_TASKS_REGISTRY]
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                hint = (
                    f"did you mean {', '.join(map(repr, near))}?"
                    if near
                    else "https://embeddings-benchmark.github.io/mteb lists all"
                )
                raise ConfigError(f"--tasks {name!r} is neither a benchmark nor a task of mteb; {hint}") from None
        found.update((task.metadata.name, task) for task in tasks)
    if not found:
        raise ConfigError("--tasks names no task; name a task or a benchmark, as in --tasks NFCorpus")
    return [*found.values()]


def single(tasks: Sequence[Any]) -> Iterator[Any]:
    """Yield the tasks, and in place of a task that is made of others these."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from single(task.tasks)
        else:
            yield task


def need_data(tasks: Sequence[Any]) -> None:
    """Raise DataError if this machine may not download, and lacks the data of a task."""
    if not datasets.config.HF_HUB_OFFLINE:
        return
    lacking = [task for task in single(tasks) if data_of(task) != "here"]
    if lacking:
        names = ", ".join(f"{task.metadata.name} ({task.metadata.dataset['path']})" for task in lacking)
        raise DataError(
            f"{len(lacking)} tasks have no data of their revision on this machine, which is offline (HF_HUB_OFFLINE): {names}. "
            f"On a machine with internet run `vectide evaluate --prefetch` with the same --tasks, and copy its folder "
            f"{datasets.config.HF_DATASETS_CACHE} to the same place here; or leave these tasks out"
        )


def data_of(task: Any) -> str:
    """Return "here" if the data of a task is in the cache, "missing", or the revision that is there instead."""
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    *owner, name = path.split("/")
    folder = "___".join([*owner, camelcase_to_snakecase(name)])
    found = {
        Path(each).name
        for each in glob.glob(f"{datasets.config.HF_DATASETS_CACHE}/{folder}/*/*/*")
        if Path(each).is_dir()
    }
    if not found:
        return "missing"
    return "here" if revision in found else f"revision {', '.join(sorted(found))[:40]}"


def prefetch(tasks: Sequence[Any]) -> dict[str, str]:
    """Download the data of tasks; return the reason of each that failed, by the name of the task."""
    failed = {}
    for task in single(tasks):
        try:
            task.load_data()
        except Exception as error:  # noqa: BLE001  (any loader of hundreds may fail in its own way)
            failed[task.metadata.name] = " ".join(str(error).split())[:300]
        else:
            task.unload_data()
    return failed


def rate(spec: ModelSpec, tasks: Sequence[Any]) -> tuple[float, str]:
    """Return the tokens per second of a model on this machine, and the basis of that rate.

    The texts are mteb's descriptions of the tasks, since the data may not be here.
    """
    texts = [task.metadata.description for task in single(tasks)]
    rows = prepare_texts(spec, (texts * (1 + _MEASURED // len(texts)))[:_MEASURED])
    return rate_of(spec, rows), f"{BASIS}, on short texts"


def costs(
    tasks: Sequence[Any], max_tokens: int | None, *, tokens_per_s: float | None, price_per_hour: float | None
) -> list[Cost]:
    """Return what each task takes.

    Args:
        tasks: The tasks.
        max_tokens: Tokens after which a model cuts a text; None if that is not known.
        tokens_per_s: Rate of the encoders.
        price_per_hour: Price of the encoders.
    """
    found = []
    for task in single(tasks):
        parts = list(_parts(task))
        latin = all(language.endswith(("Latn", "Code")) for language in _languages(task))
        texts = sum(part.texts for part in parts)
        tokens = int(sum(part.tokens(_LATIN if latin else _OTHERS, max_tokens) for part in parts))
        seconds = None if tokens_per_s is None else tokens / tokens_per_s
        price = None if seconds is None or price_per_hour is None else seconds / 3600 * price_per_hour
        found.append(
            Cost(
                task.metadata.name,
                task.metadata.type,
                texts if parts else None,
                sum(part.pictures for part in parts),
                sum(part.characters for part in parts),
                tokens,
                seconds,
                price,
                data_of(task),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Some inputs of a task: the documents, the queries, the texts of a split."""

    texts: int = 0
    characters: int = 0
    pictures: int = 0
    pixels: float = 0.0

    def tokens(self, characters_per_token: float, max_tokens: int | None) -> float:
        of_texts = self.characters / characters_per_token
        if max_tokens is not None:
            of_texts = min(of_texts, self.texts * max_tokens)
        return of_texts + self.pixels / _PIXELS


def _parts(task: Any) -> Iterator[_Part]:
    """Yield the parts of a task's inputs, by mteb's statistics."""
    statistics = task.metadata.descriptive_stats or {}
    for split in task.eval_splits:
        of_split = statistics.get(split) or {}
        of_subsets = of_split.get("hf_subset_descriptive_stats") or {}
        chosen = [each for subset in task.hf_subsets or () if (each := of_subsets.get(subset))]
        for numbers in chosen or [of_split]:
            share = _share(task, numbers.get("num_samples") or 0)
            yield from (_part(each, share) for each in numbers.values() if isinstance(each, dict) and _is_input(each))
    train = statistics.get(getattr(task, "train_split", None) or "", {})
    labels = ((train.get("label_statistics") or {}).get("unique_labels")) or 0
    if labels and train.get("num_samples"):
        drawn = min(train["num_samples"], labels * task.samples_per_label * task.n_experiments)
        share = drawn / train["num_samples"]
        yield from (_part(each, share) for each in train.values() if isinstance(each, dict) and _is_input(each))


def _is_input(statistics: dict[str, Any]) -> bool:
    return "total_text_length" in statistics or "unique_images" in statistics


def _part(statistics: dict[str, Any], share: float) -> _Part:
    """Return the different inputs of a kind."""
    if "unique_images" in statistics:
        pixels = statistics.get("average_image_width", 0) * statistics.get("average_image_height", 0)
        count = int(statistics["unique_images"] * share)
        return _Part(pictures=count, pixels=count * min(pixels, _MOST_PIXELS))
    length, average = statistics["total_text_length"], statistics.get("average_text_length") or 1
    unique = statistics.get("unique_texts") or round(length / average)
    return _Part(texts=int(unique * share), characters=int(unique * average * share))


def _share(task: Any, samples: int) -> float:
    """Return the share of its inputs that a task of clustering embeds."""
    most = getattr(task, "max_document_to_embed", None)
    if most is not None and samples:
        return min(1.0, float(most) / samples)
    fraction = getattr(task, "max_fraction_of_documents_to_embed", None)
    return 1.0 if fraction is None else float(fraction)


def _languages(task: Any) -> list[str]:
    languages = task.metadata.eval_langs
    return languages if isinstance(languages, list) else [each for subset in languages.values() for each in subset]
