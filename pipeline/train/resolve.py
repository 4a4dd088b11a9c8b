"""Resolves a training job against its model: what the model does not allow is refused, and its defaults are filled in.

Torch-free but for the list of families that can be trained. The workers get the resolved job.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors import storage
from actors.encoders import checkpoint
from actors.encoders.families import jina_v3_layout, jina_v4_layout
from actors.encoders.families.detect import detect
from actors.encoders.layout import FamilyFacts
from actors.encoders.lora.files import CONFIG, adapter_folder, read_adapter
from actors.encoders.lora.published import own_rank
from actors.encoders.repository import read_repository
from actors.encoders.settings import EncoderSettings
from actors.encoders.spec import ModelSpec, describe, folder_of
from actors.encoders.weight_files import read_tensors
from actors.errors import ConfigError, ModelError, TaskMissing
from pipeline.job.training import Train, Training

_RANK = 16
_PACKAGES = ("sentence_transformers", "accelerate", "datasets", "peft")
# Families whose weights are never trained, because the adapters in their checkpoint belong to them.
_FROZEN = ("jina_v3", "jina_v4")


def resolve(job: Training) -> tuple[Training, ModelSpec]:
    """Return the job with the defaults of its model, and the model. No row is read.

    Raises:
        ConfigError: the model does not allow a setting, or the libraries of the extra `train` are not installed.
        ModelError: the model cannot be read or trained, or the adapter to start from is not one of this model.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"`vectide train` needs {', '.join(missing)}: pip install 'vectide[train]'")
    train = job.train
    spec = _describe(train)
    facts = facts_of(spec)
    _check(train, spec, facts)
    _check_place(job, folder_of(spec))
    found: dict[str, Any] = {"max_tokens": spec.max_tokens}
    if train.method == "lora":
        own = _start_sizes(train.start_from, spec, facts) if train.start_from else own_rank(spec)
        rank = train.rank or (own[0] if own else _RANK)
        alpha = train.alpha or (own[1] * rank / own[0] if own else 2.0 * rank)
        if train.start_from and own and (rank, alpha) != own:
            raise ConfigError(
                f"train.start_from is an adapter of rank {own[0]} and alpha {own[1]:g}, which it keeps, and the job asks for rank "
                f"{rank} and alpha {alpha:g}; leave train.rank and train.alpha out"
            )
        found |= {"rank": rank, "alpha": alpha, "task": train.tasks}
    resolved = job.model_copy(update={"train": train.model_copy(update=found)})
    if writes_checkpoint(resolved, spec):
        _check_layout(resolved, spec, facts)
    return resolved, spec


def _check_place(job: Training, model: Path) -> None:
    """Raise `ConfigError` if the result would replace files of the model that it begins with."""
    out = storage.absolute(job.out.uri)
    places = [storage.local_path(out), storage.local_path(storage.join(out, "model"))] if storage.is_local(out) else []
    if any(place.resolve() == model.resolve() for place in places):
        raise ConfigError(
            f"out.uri {job.out.uri!r} holds the model {job.train.model!r}, and the result would replace files of it; name another "
            f"folder"
        )


def writes_checkpoint(job: Training, spec: ModelSpec) -> bool:
    """Return whether the whole model is written: an adapter in place of one of the model's own is of use in no other form."""
    return job.train.method == "full" or job.out.checkpoint or replaces_own(spec, job.train.tasks)


def replaces_own(spec: ModelSpec, tasks: Sequence[str]) -> bool:
    """Return whether one of these adapters takes the place of one that the model has, by its name or by a task of it."""
    own = {jina_v4_layout.adapter_of(task) for task in spec.tasks} if spec.family == "jina_v4" else set()
    return any(task in own.union(spec.tasks) for task in tasks)


def tasks_in_model(spec: ModelSpec, tasks: Sequence[str]) -> tuple[str, str]:
    """Return the tasks of queries and of passages in a whole model with these adapters, of which v4 has two for each."""
    if spec.family == "jina_v4" and tasks[0] not in spec.tasks:
        return f"{tasks[0]}.query", f"{tasks[-1]}.passage"
    return tasks[0], tasks[-1]


def facts_of(spec: ModelSpec) -> FamilyFacts:
    """Return what the layout of a model's family says about its checkpoint.

    Raises:
        ModelError: the checkpoint on this machine is incomplete.
    """
    return _facts_at(folder_of(spec))


def _facts_at(folder: Path) -> FamilyFacts:
    with checkpoint.understanding(folder):
        return detect(checkpoint.read_json(folder / "config.json"), read_tensors(folder)[1], where=str(folder))[0]


def _describe(train: Train) -> ModelSpec:
    """Return the model with the prompts that the texts get: those of a task that it has, else its own."""
    outputs = ("dense", "multi") if train.stage == "joint" else ("dense",)
    settings: dict[str, Any] = {
        "revision": train.revision,
        "max_tokens": train.max_tokens,
        "dtype": "float32",
        "outputs": outputs,
    }
    try:
        spec = describe(EncoderSettings(train.model, **settings))
    except TaskMissing:  # the prompts of a new adapter are those of a task for passages
        root, _ = checkpoint.resolve(train.model, train.revision)
        tasks = _facts_at(read_repository(root).folder).tasks
        task = next((task for task in tasks if task.endswith("passage")), tasks[0])
        spec = describe(EncoderSettings(train.model, task=task, **settings))
    except ConfigError as error:
        if not str(error).startswith("encoder.outputs"):
            raise
        if train.stage != "joint":
            raise ModelError(
                f"train.model {train.model!r} makes many vectors a row and none of them dense, which cannot be trained; take a "
                f"model with a dense vector"
            ) from None
        raise ConfigError(
            f"train.stage is joint, which needs a model with a dense vector and many vectors of one pass, and {train.model} is "
            f"none; take jinaai/jina-embeddings-v4, or set train.stage: pairs"
        ) from None
    known = [task for task in train.tasks if task in spec.tasks]
    return spec.with_task(known[-1]) if known else spec


def _check(train: Train, spec: ModelSpec, facts: FamilyFacts) -> None:
    from actors.encoders.twins import TWINS

    if spec.family not in TWINS or spec.encodes_many:
        raise ModelError(
            f"train.model {spec.model!r} is of family {spec.family!r}, which cannot be trained; those that can are "
            f"{', '.join(TWINS)}"
        )
    if train.method == "lora" and not facts.targets:
        raise ConfigError(
            f"train.method is lora, and {spec.model} is of family {spec.family!r}, to which the encoder adds no adapter; set "
            f"method: full"
        )
    if train.method == "full" and spec.family in _FROZEN:
        raise ConfigError(
            f"train.method is full, and the weights of {spec.model} carry its own adapters, which would no longer fit; set "
            f"method: lora"
        )
    if spec.family == "jina_v4" and len({jina_v4_layout.adapter_of(task) for task in train.tasks}) < len(train.tasks):
        raise ConfigError(
            f"train.task names {' and '.join(train.tasks)}, which share an adapter in {spec.model}; name one of them"
        )
    if train.rank is not None and not train.start_from and train.rank > spec.hidden:
        raise ConfigError(
            f"train.rank is {train.rank}, and the layers of {spec.model} are {spec.hidden} wide: an adapter of a larger rank has "
            f"more weights than a layer; set {spec.hidden} or less"
        )
    if wide := [dim for dim in train.matryoshka if dim >= spec.hidden]:
        raise ConfigError(
            f"train.matryoshka names {wide[0]}, and a vector of {spec.model} has {spec.hidden} dimensions, which are trained "
            f"anyway; name smaller numbers"
        )


def _check_layout(job: Training, spec: ModelSpec, facts: FamilyFacts) -> None:
    """Raise ConfigError if the layout of the model's checkpoint cannot hold the adapters."""
    train = job.train
    if train.method == "full":
        return
    own = own_rank(spec)
    if spec.family not in _FROZEN or own is None:
        if not job.out.checkpoint:
            raise ConfigError(
                f"train.task names {' and '.join(train.tasks)}, and {spec.model} has a task of this name without an adapter that "
                f"could be replaced; give the adapter another name"
            )
        raise ConfigError(
            f"out.checkpoint is for models that carry their adapters, and {spec.model} does not; leave it out: an adapter is a "
            f"folder beside the model"
        )
    if spec.family == "jina_v3" and facts.adapters:
        jina_v3_layout.check_folders((*facts.tasks, *train.tasks))
    shared = facts.shared_adapters or spec.variant == "hub"
    if shared and (train.rank, train.alpha) != own:
        raise ConfigError(
            f"train.rank is {train.rank} and train.alpha {train.alpha:g}, and all adapters in a checkpoint like {spec.model} have "
            f"rank {own[0]} and alpha {own[1]:g}; leave both out, or give the adapter a new name and leave out.checkpoint out"
        )


def _start_sizes(start_from: Sequence[str], spec: ModelSpec, facts: FamilyFacts) -> tuple[int, float]:
    """Return rank and alpha of the adapters to start from, after the check that they are of this model and of one size."""
    sizes = {each: _start_size(each, spec, facts) for each in start_from}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{each} rank {rank} and alpha {alpha:g}" for each, (rank, alpha) in sizes.items())
        raise ConfigError(
            f"adapters that are trained together have one rank and one alpha, and train.start_from has {found}; train them "
            f"one by one, or leave start_from out"
        )
    return next(iter(sizes.values()))


def _start_size(start_from: str, spec: ModelSpec, facts: FamilyFacts) -> tuple[int, float]:
    """Return rank and alpha of the adapter to start from, after the check that it is one of this model."""
    if start_from in (*spec.tasks, *facts.adapters) and (own := own_rank(spec)) is not None:
        return own
    with adapter_folder("train.start_from", start_from) as folder:
        files = read_adapter(folder, facts.targets)
        config = checkpoint.read_json(folder / CONFIG)
        _check_base(config.get("base_model_name_or_path"), spec)
        return int(config["r"]), files.scale * config["r"]


def _check_base(base: str | None, spec: ModelSpec) -> None:
    """Raise ModelError if the adapter's config names another model; one that is not here is only compared by name."""
    if not base or base == spec.model:
        return
    if Path(base).is_dir():
        settings = EncoderSettings(base, task=spec.task if spec.task in spec.tasks else None, dtype="float32")
        differs = describe(settings).weights_sha256 != spec.weights_sha256
    else:
        differs = not Path(base).is_absolute() and not Path(spec.model).is_dir()
    if differs:
        raise ModelError(
            f"train.start_from is an adapter of {base!r}, and train.model is {spec.model!r}; an adapter fits the model that it "
            f"was trained on: name that one, or leave start_from out"
        )
