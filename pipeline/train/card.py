"""Model card of a trained model: the README.md beside it, as the Hugging Face Hub reads one.

It says what was trained on what, with which settings, what it is worth on held-out queries, and how to load it. A licence is
what the card of the base or of the data states; nothing is assumed of one that states none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from actors import storage
from actors.encoders.checkpoint import resolve
from actors.encoders.spec import ModelSpec
from actors.errors import VectideError
from pipeline.job.training import DataSource, Training
from pipeline.train.data import TrainingData
from pipeline.train.evaluate import Comparison
from pipeline.train.prompts import prompts_of
from pipeline.train.resolve import replaces_own, tasks_in_model

NOT_STATED = "not stated"
# Layouts for which transformers has the class, so that no code of a repository runs.
_WITHOUT_REMOTE_CODE = {("bert", ""), ("jina_v1", ""), ("jina_v3", "native")}


def model_card(
    job: Training,
    spec: ModelSpec,
    data: TrainingData,
    *,
    steps: int,
    adapters: Mapping[str, str],
    comparison: Comparison | None,
) -> str:
    """Return the text of the card.

    Args:
        job: The job, with what the model filled in.
        spec: The base.
        data: What was read.
        steps: Steps of the weights that were kept.
        adapters: Folder of each trained adapter by its name; empty: the whole model was trained.
        comparison: nDCG@10 before and after; None: there is no held-out data.
    """
    licence = _licence_of_model(spec)
    kind = "fine-tuned model" if not adapters else "LoRA adapter" if len(adapters) == 1 else "pair of LoRA adapters"
    parts = [
        _head(spec, licence, adapters),
        f"# {job.out.uri.rstrip('/').rsplit('/', 1)[-1]}",
        f"A {kind} for embeddings of texts, trained by `vectide train` from `{spec.model}`.",
        "## Result",
        _result(comparison),
        "## Use",
        _use(job, spec, adapters),
        "## Base",
        _table(
            ("model", "revision", "licence", "SHA-256 of the weights"),
            [(f"`{spec.model}`", spec.revision or "none: a folder", licence, f"`{spec.weights_sha256}`")],
        ),
        "## Data",
        _data(job, data),
        "## Settings",
        _settings(job, steps),
    ]
    return "\n\n".join(parts) + "\n"


def licence_of(card: str) -> str:
    """Return the licence in the YAML block at the start of a card; `NOT_STATED` if there is none."""
    block = card.split("---", 2)
    if len(block) < 3 or block[0].strip():
        return NOT_STATED
    try:
        found = yaml.safe_load(block[1])
    except yaml.YAMLError:
        return NOT_STATED
    if not isinstance(found, dict) or not found.get("license"):
        return NOT_STATED
    name = found.get("license_name") if found["license"] == "other" else None
    return str(name or found["license"])


def _licence_of_model(spec: ModelSpec) -> str:
    folder, _ = resolve(spec.model, spec.revision)
    card = folder / "README.md"
    return licence_of(card.read_text("utf-8", "replace")) if card.is_file() else NOT_STATED


def _licence_of_data(source: DataSource) -> str:
    """Return the licence that a card in the folder of a source states, as data sets of the Hugging Face Hub have one."""
    url = storage.absolute(source.uri)
    folders = [url] if storage.is_local(url) and storage.local_path(url).is_dir() else [url, url.rpartition("/")[0]]
    for folder in folders:
        try:
            return licence_of(storage.read(storage.join(folder, "README.md")).decode("utf-8", "replace"))
        except (OSError, VectideError):  # a glob, or no card: the training itself has read the rows
            continue
    return NOT_STATED


def _head(spec: ModelSpec, licence: str, adapters: Mapping[str, str]) -> str:
    fields: dict[str, Any] = {} if licence == NOT_STATED else {"license": licence}
    if spec.revision is not None:  # the Hub knows a base by its id there, and not by a folder
        fields |= {"base_model": spec.model, "base_model_relation": "adapter" if adapters else "finetune"}
    fields |= {
        "library_name": "peft" if adapters else "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "sentence-similarity", "vectide"],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _result(comparison: Comparison | None) -> str:
    if comparison is None:
        return "The job named no held-out data (`train.evaluate`), so nothing was measured."
    return (
        f"nDCG@10 of {comparison.queries:,} held-out queries among {comparison.documents:,} documents, with 95 % intervals by "
        "a paired bootstrap. Measured with the finished files.\n\n"
        + _table(("before", "after", "difference"), [(comparison.before, comparison.after, comparison.difference)])
    )


def _use(job: Training, spec: ModelSpec, adapters: Mapping[str, str]) -> str:
    # A task of the base is replaced in a whole model, because `encoder.adapters` may not repeat its name.
    tasks = (*adapters,) or job.train.tasks
    whole = not adapters or replaces_own(spec, tasks)
    base = str(Path(spec.model).absolute()) if Path(spec.model).is_dir() else spec.model
    encoder: dict[str, Any] = {"model": storage.join(storage.absolute(job.out.uri), "model") if whole else base}
    if job.train.max_tokens is not None:
        encoder["max_tokens"] = job.train.max_tokens
    if tasks:
        encoder["task"] = tasks_in_model(spec, tasks)[-1] if whole else tasks[-1]
    if not whole:
        query, passage = prompts_of(spec, job.train.tasks)
        prompts = {"prompt": passage} if passage else {}
        prompts |= {} if query == passage else {"query_prompt": query}
        first, *others = adapters.values()
        keys = {"path": first, **prompts} if not others else {"path": others[-1], "query_path": first, **prompts}
        encoder["adapters"] = {encoder["task"]: keys if len(keys) > 1 else first}
    text = f"In Vectide:\n\n```yaml\n{yaml.safe_dump({'encoder': encoder}, sort_keys=False)}```\n\n"
    if shorter := ", ".join(str(width) for width in job.train.matryoshka if width < spec.dim):
        text += (
            f"Vectors may be cut to their first dimensions, as trained: {shorter}. Set `encoder.dim`, and "
            "`encoder.allow_untrained_dim: true` where the files of the model do not name that number.\n\n"
        )
    if (spec.family, spec.variant) not in _WITHOUT_REMOTE_CODE:
        return (
            text + "sentence-transformers loads it only with the code of the base's repository (`trust_remote_code`)."
        )
    lines = ["from sentence_transformers import SentenceTransformer", ""]
    lines += [f'model = SentenceTransformer("{encoder["model"]}")']
    if job.train.max_tokens is not None:
        lines += [f"model.max_seq_length = {job.train.max_tokens}"]
    lines += [f'model.load_adapter("{place}", "{name}")' for name, place in adapters.items() if not whole]
    if len(adapters) > 1 and not whole:
        asks, answers = adapters
        lines += [f'model.set_adapter("{asks}")  # before queries are encoded']
        lines += [f'model.set_adapter("{answers}")  # before passages are encoded']
    return text + "In sentence-transformers:\n\n```python\n" + "\n".join(lines) + "\n```"


def _data(job: Training, data: TrainingData) -> str:
    rows = []
    for source, loaded in zip(job.data, data.sources, strict=True):
        counts = data.counts.get(loaded.name, {})
        others = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count and name != "kept")
        condition = f" where `{source.where}`" if source.where else ""
        rows.append(
            (
                f"`{source.uri}`{condition}",
                f"{loaded.rows:,}",
                loaded.loss,
                loaded.negatives,
                f"{loaded.weight:g}",
                others,
                _licence_of_data(source),
            )
        )
    return _table(("source", "rows", "loss", "negatives a row", "weight", "counted", "licence"), rows)


def _settings(job: Training, steps: int) -> str:
    settings = job.train.model_dump(mode="json", exclude={"model", "revision"})
    rows = [(f"`train.{key}`", f"`{value}`") for key, value in settings.items() if value not in (None, [])]
    return _table(("setting", "value"), [("steps of the kept weights", f"{steps:,}"), *rows])


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
