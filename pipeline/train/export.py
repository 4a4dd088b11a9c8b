"""Writes what was trained, and checks that the encoder loads it and makes the same vectors.

    <out>/adapters/<task>/    a PEFT folder for each adapter: `encoder.adapters: {<task>: <out>/adapters/<task>}`
    <out>/model/              the whole model, with method full, or with the adapters in the layout of its publisher

Imports torch: it is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from actors import storage
from actors.encoders import describe, load_encoder
from actors.encoders.settings import AdapterSettings, EncoderSettings
from actors.encoders.spec import ModelSpec
from actors.encoders.twins.export import save_checkpoint
from actors.encoders.twins.export_lora import export_adapters
from actors.encoders.twins.factors import save_factors
from actors.encoders.twins.lora import factors_of
from actors.errors import InvariantBroken, StorageError
from actors.vectors import Floats
from pipeline.job.training import Training
from pipeline.train.checkpoints import load_trained
from pipeline.train.data import TrainingData
from pipeline.train.evaluate import Encode, Side, in_training, of_encoder
from pipeline.train.module import model_of
from pipeline.train.prompts import prompts_of
from pipeline.train.resolve import replaces_own, tasks_in_model, writes_checkpoint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ADAPTERS, MODEL = "adapters", "model"
TOLERANCE = 1e-4  # of a number of a vector of unit length
_TEXTS = 32  # of each side
# Written last, since a folder without them is not loaded.
_LAST = ("config.json", "adapter_config.json")


def trained_model(job: Training, spec: ModelSpec, out: str) -> SentenceTransformer:
    """Return the model with the weights that the training wrote.

    Raises:
        DataError: the weights are damaged.
    """
    model = model_of(job.train, spec)
    load_trained(model, out)
    return model.eval()


def export(model: SentenceTransformer, job: Training, spec: ModelSpec, folder: Path) -> None:
    """Write the adapters and the model of a job into a folder of this machine.

    Raises:
        StorageError: a file of weights cannot be written.
    """
    module: Any = model[0]
    twin, train = module.twin, job.train
    try:
        if train.method == "full":
            save_checkpoint(twin, folder / MODEL)
            return
        factors = {task: factors_of(twin, task) for task in train.tasks}
        for task, each in factors.items():
            save_factors(twin, each, folder / ADAPTERS / task)
        if writes_checkpoint(job, spec):
            prompts = {task: prompts_of(spec, train.tasks)[min(number, 1)] for number, task in enumerate(train.tasks)}
            export_adapters(twin, factors, folder / MODEL, prompts=prompts)
    except SafetensorError as error:
        raise StorageError(f"cannot write below {str(folder)!r}: {error}") from None


def check(
    model: SentenceTransformer, job: Training, spec: ModelSpec, folder: Path, data: TrainingData
) -> tuple[float, Encode]:
    """Load each form of the result with the encoder, and compare its vectors with those of the trained module.

    Args:
        model: The trained module.
        job: The resolved job.
        spec: The model that was trained.
        folder: Has what `export` wrote.
        data: Its first texts are encoded, 32 of each side.

    Returns:
        The largest difference of a number, and the function that encodes with the first form.

    Raises:
        InvariantBroken: the difference is more than `TOLERANCE`.
        ModelError: the encoder does not take the result.
    """
    texts, first, worst = _texts(data), None, 0.0
    for settings, tasks in _forms(job, spec, folder):
        encoder = load_encoder(describe(settings))
        encode = of_encoder(encoder, tasks)
        first = first or encode
        for side in texts:
            worst = max(worst, _largest(in_training(model)(texts[side], side), encode(texts[side], side)))
        if spec.makes("multi"):
            prompts, names = prompts_of(spec, job.train.tasks), (tasks[0], tasks[-1])
            for number, side in enumerate(texts):
                ours = encoder.encode_multi(texts[side], names[number])
                theirs = _many(model, texts[side], prompts[number], job.train.tasks[-number])
                worst = max(worst, *map(_largest, theirs, ours))
    if first is None or not worst <= TOLERANCE:
        raise InvariantBroken(
            f"the exported model makes other vectors than the trained one: they differ by {worst:.2g}, and {TOLERANCE:g} is allowed. "
            f"Nothing was announced; report this with the job file"
        )
    return worst, first


def _forms(job: Training, spec: ModelSpec, folder: Path) -> Iterator[tuple[EncoderSettings, tuple[str, ...]]]:
    """Yield the encoder's settings for each form of the result, with the tasks of queries and of passages in it."""
    train = job.train
    settings: dict[str, Any] = {"max_tokens": train.max_tokens, "dtype": "float32"}
    settings |= {"outputs": ("dense", "multi")} if train.stage == "joint" else {}
    if train.method == "lora" and not replaces_own(spec, train.tasks):
        query, passage = prompts_of(spec, train.tasks)
        prompts = (query, passage) if len(train.tasks) > 1 else (passage,)
        of_query = query if len(prompts) == 1 and query != passage else None
        adapters = {
            task: AdapterSettings(str(folder / ADAPTERS / task), prompt, of_query)
            for task, prompt in zip(train.tasks, prompts, strict=True)
        }
        passages = train.tasks[-1]
        yield (
            EncoderSettings(spec.model, spec.revision, passages, adapters=adapters, **settings),
            (train.tasks[0] if of_query is None else f"{passages}.query", passages),
        )
    if writes_checkpoint(job, spec):
        tasks = tasks_in_model(spec, train.tasks) if train.tasks else ()
        task = tasks[-1] if tasks else spec.task
        yield EncoderSettings(str(folder / MODEL), task=task, **settings), tasks


def _many(model: SentenceTransformer, texts: list[str], prompt: str, task: str) -> list[Floats]:
    """Return the vectors of the trained module for late interaction, of each text [tokens, width]."""
    module: Any = model[0]
    with torch.no_grad():
        found = module(module.preprocess(texts, prompt=prompt, task=task))
    vectors, masks = found["token_embeddings"].numpy(), found["attention_mask"].numpy()
    return [each[mask.astype(bool)] for each, mask in zip(vectors, masks, strict=True)]


def _largest(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


def publish(folder: Path, out: str) -> dict[str, int]:
    """Copy the files of a folder to the `out` folder, those that make it loadable last; return their sizes by place.

    Raises:
        StorageError: the store refused or failed.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.name in _LAST, path))
    sizes = {}
    for path in files:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        storage.put(storage.join(out, name), content)
        sizes[name] = len(content)
    return sizes


def _texts(data: TrainingData) -> dict[Side, list[str]]:
    tables = [source.take(range(min(source.rows, -(-_TEXTS // len(data.sources))))) for source in data.sources]
    columns: dict[Side, str] = {"query": "query", "document": "passage"}
    return {side: [text for table in tables for text in table[name].to_pylist()] for side, name in columns.items()}
