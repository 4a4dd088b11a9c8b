"""Writes what was trained, and checks that the encoder loads it and makes the same vectors.

    <out>/adapters/<task>/    a PEFT folder for each adapter: `encoder.adapters: {<task>: <out>/adapters/<task>}`
    <out>/model/              the whole model, with method full, or with the adapters in the layout of its publisher

Imports torch: it is imported when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from actors import storage
from actors.encoders import describe, load_encoder
from actors.encoders.encoder import Encoder
from actors.encoders.settings import AdapterSettings, EncoderSettings
from actors.encoders.spec import ModelSpec
from actors.encoders.twins.export import save_checkpoint
from actors.encoders.twins.export_lora import export_adapters
from actors.encoders.twins.factors import save_factors
from actors.encoders.twins.lora import factors_of
from actors.errors import InvariantBroken, StorageError
from actors.storage.temp_dirs import disk_errors
from pipeline.job.training import Training
from pipeline.train.checkpoints import load_trained
from pipeline.train.collate import prompts_of
from pipeline.train.data import TrainingData
from pipeline.train.evaluate import Encode, Side, in_training
from pipeline.train.module import embedding_model
from pipeline.train.resolve import writes_checkpoint

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
    train = job.train
    model = embedding_model(
        spec,
        tasks=train.tasks,
        rank=train.rank or 0,
        alpha=train.alpha or 0.0,
        seed=train.seed,
        start_from=train.start_from,
    )
    load_trained(model, out)
    return model.eval()


def export(model: SentenceTransformer, job: Training, spec: ModelSpec, folder: Path) -> None:
    """Write the adapters and the model of a job into a folder of this machine.

    Raises:
        StorageError: the disk failed, for example because it is full.
    """
    module: Any = model[0]
    twin, train = module.twin, job.train
    try:
        with disk_errors(folder):
            if train.method == "full":
                save_checkpoint(twin, folder / MODEL)
                return
            factors = {task: factors_of(twin, task) for task in train.tasks}
            for task, each in factors.items():
                save_factors(twin, each, folder / ADAPTERS / task)
            if writes_checkpoint(job, spec):
                prompts = {
                    task: prompts_of(spec, train.tasks)[min(number, 1)] for number, task in enumerate(train.tasks)
                }
                export_adapters(twin, factors, folder / MODEL, prompts=prompts)
    except SafetensorError as error:
        raise StorageError(f"cannot write below {str(folder)!r}: {error}") from None


def encoder_of(job: Training, spec: ModelSpec, folder: Path) -> Encoder:
    """Load the result with the encoder, as a job of a backfill would.

    Raises:
        ModelError: the encoder does not take it.
    """
    train = job.train
    own = any(task in spec.tasks for task in train.tasks)
    settings: dict[str, Any] = {"max_tokens": train.max_tokens, "dtype": "float32"}
    if train.method == "full" or own:
        task = train.tasks[-1] if own else spec.task
        return load_encoder(describe(EncoderSettings(str(folder / MODEL), task=task, **settings)))
    query, passage = prompts_of(spec, train.tasks)
    prompts = [query, passage] if len(train.tasks) > 1 else [passage]
    adapters = {
        task: AdapterSettings(
            str(folder / ADAPTERS / task), prompt, query if len(prompts) == 1 and query != passage else None
        )
        for task, prompt in zip(train.tasks, prompts, strict=True)
    }
    return load_encoder(
        describe(EncoderSettings(spec.model, spec.revision, train.tasks[-1], adapters=adapters, **settings))
    )


def check(model: SentenceTransformer, encode: Encode, data: TrainingData) -> float:
    """Return the largest difference of a number in the vectors of the trained module and of the encoder.

    Args:
        model: The trained module.
        encode: Encodes with what was exported.
        data: Its first texts are encoded, 32 of each side.

    Raises:
        InvariantBroken: it is more than `TOLERANCE`.
    """
    trained, worst = in_training(model), 0.0
    for side, texts in _texts(data).items():
        worst = max(worst, float(np.abs(trained(texts, side) - encode(texts, side)).max()))
    if not worst <= TOLERANCE:
        raise InvariantBroken(
            f"the exported model makes other vectors than the trained one: they differ by {worst:.2g}, and {TOLERANCE:g} is allowed. "
            f"Nothing was announced; report this with the job file"
        )
    return worst


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
