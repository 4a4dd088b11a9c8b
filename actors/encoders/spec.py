"""Describes a model and its settings as plain data, created once on the driver and pickled to every worker.

Torch-free and cheap to import, because the driver, the readers and the command line need it. `describe` reads only
JSON files and safetensors headers and hashes the weights; it loads no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.encoders import checkpoint, muvera
from actors.encoders.families.detect import detect
from actors.encoders.layout import FamilyFacts, Markers, check_adapters, check_tensors
from actors.encoders.lora.files import adapter_folder, read_adapter, sha256_adapter, takes_no_adapters
from actors.encoders.outputs import choose_outputs
from actors.encoders.preprocessor import chosen, picture_settings
from actors.encoders.repository import SHORTEST_TEXT, Repository, read_repository
from actors.encoders.settings import EncoderSettings
from actors.encoders.weight_files import read_tensors
from actors.errors import ConfigError, ModelError, TaskMissing
from actors.images.settings import PictureSettings
from actors.schema import EMBEDDING
from actors.vectors import VectorColumn, lineage_of

_PRECISIONS = {
    "auto": "bfloat16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
    "int8": "int8",
}


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """Reference to an adapter that was added to a model.

    Attributes:
        tasks: The tasks that use it: its name, and `<name>.query` if queries have a prompt of their own.
        path: Its PEFT folder: an absolute path, a URL or a hub id.
        sha256: Hash of its content.
    """

    tasks: tuple[str, ...]
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model, every setting of it that changes vectors, and its location on this machine.

    Attributes:
        model: Hub id or directory, as the user wrote it.
        revision: Commit of the hub snapshot, None for a directory.
        path: The directory with config.json, weights and tokenizer.json on this machine.
        family: Key of the family ("bert", "jina_v2", ...); `variant` distinguishes its published layouts.
        hidden: Width of token states.
        dim: Width of vectors.
        max_tokens: Texts are truncated to this many tokens, special tokens and prompt included.
        task: The task in use, or None.
        tasks: All tasks of this model.
        prompt: Text put before each text (for `task`).
        prompts: Text by task.
        query_of: Task for queries against vectors of a task, if it is another one.
        pooling: "mean", "cls" or "last".
        normalize: Vectors have unit length (always True).
        precision: Class of arithmetic. "bfloat16" allows 16-bit arithmetic where the hardware supports it; the lowest
            cosine to float32 is 0.999 or more either way, so machines may differ within one table. "int8" is a class
            of its own: products of 8-bit integers, for CPUs.
        lowercase: The tokenizer lower-cases texts before its other steps; special tokens in them keep their case.
        weights_sha256, config_sha256, tokenizer_sha256: Hashes of content, published adapters included.
        adapters: Adapters added to the published ones or replacing them.
        vocab_size: Rows of the word table, 0 if not known. A token id beyond it is refused.
        modality: Key of `actors.inputs.MODALITIES`: the content that the model takes.
        own_outputs: Outputs that are something else than one dense vector.
        pictures: Settings of pictures; None if the model takes texts only.
        markers: The tokens by which it tells queries and texts apart; None if it has none.
        multi_pool, multi_keep: As in `EncoderSettings`.
    """

    model: str
    revision: str | None
    path: str
    family: str
    variant: str
    hidden: int
    dim: int
    max_tokens: int
    task: str | None
    tasks: tuple[str, ...]
    prompt: str
    prompts: Mapping[str, str] = field(hash=False)
    query_of: Mapping[str | None, str] = field(hash=False)
    pooling: str
    normalize: bool
    precision: str
    lowercase: bool
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    adapters: tuple[AdapterRef, ...] = ()
    vocab_size: int = 0
    modality: str = "text"
    own_outputs: tuple[VectorColumn, ...] = ()
    pictures: PictureSettings | None = None
    markers: Markers | None = None
    multi_pool: int | None = None
    multi_keep: str = "all"

    @property
    def outputs(self) -> tuple[VectorColumn, ...]:
        """The columns of vectors that the model makes; search compares the first one."""
        return self.own_outputs or (VectorColumn(EMBEDDING, "dense", self.dim),)

    def makes(self, kind: str) -> bool:
        """Returns True if an output is of this kind: "dense" or "multi"."""
        return any(column.kind == kind for column in self.outputs)

    @property
    def encodes_many(self) -> bool:
        """True if the dense vector is an encoding of the many (`muvera`), and is not pooled from the token states."""
        return not self.outputs[0].normalized

    def lineage(self) -> dict[str, str | int | float | bool | None]:
        """Returns every property that changes vectors, as JSON values.

        Name, revision and path are omitted: the hashes identify the model, and a copy in another place, or a revision that
        changed only a README, must not cause a re-embedding. Of the added adapters, only the one in use is included.
        A table keeps the prompt of its queries in its settings, so that belongs to it too.
        """
        own, queries = self._adapter_of(self.task), self.query_side()
        added = {} if own is None else {"adapter_sha256": own.sha256}
        if own is not None and len(own.tasks) > 1:
            added["query_prompt"] = queries.prompt
            of_queries = self._adapter_of(queries.task)
            if of_queries is not None and of_queries is not own:
                added["query_adapter_sha256"] = of_queries.sha256
        return {
            **added,
            **lineage_of(self.outputs),
            **({} if self.modality == "text" else {"modality": self.modality}),
            **(asdict(self.pictures) if self.pictures is not None and self.modality != "text" else {}),
            **({"muvera": muvera.LINEAGE} if self.encodes_many else {}),
            **({"multi_pool": self.multi_pool} if self.multi_pool and self.modality != "text" else {}),
            **({} if self.multi_keep == "all" else {"multi_keep": self.multi_keep}),
            "family": self.family,
            "variant": self.variant,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "task": self.task,
            "prompt": self.prompt,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "dim": self.dim,
            "max_tokens": self.max_tokens,
            "precision": self.precision,
            # Earlier versions wrote true. They lower-cased before the tokenizer, which broke special tokens in a text.
            "lowercase": "in the tokenizer" if self.lowercase else False,
        }

    def _adapter_of(self, task: str | None) -> AdapterRef | None:
        """Returns the added adapter of a task: the last of those with this task, as when they are loaded."""
        return next((ref for ref in reversed(self.adapters) if task in ref.tasks), None)

    def with_task(self, task: str | None) -> ModelSpec:
        """Returns the spec of the same model for another task, with that task's prompt.

        Raises:
            ConfigError: The model has no such task.
        """
        if task == self.task:
            return self
        if task is not None:
            check_task(task, self.tasks, where=self.model)
        return replace(self, task=task, prompt=self.prompts.get(task, "") if task is not None else "")

    def with_adapter(self, prompts: Mapping[str, str], path: str, sha256: str) -> ModelSpec:
        """Returns the spec with an adapter more, which replaces one of the same name.

        Args:
            prompts: The prompts of its tasks: that of its name, then that of its queries if they have another one.
            path: Its PEFT folder: a local directory, a URL or a hub id.
            sha256: Hash of its content.
        """
        name, *queries = prompts
        if Path(path).expanduser().is_dir():
            path = str(Path(path).expanduser().resolve())
        return replace(
            self,
            tasks=tuple(dict.fromkeys((*self.tasks, *prompts))),
            prompt=prompts.get(self.task or "", self.prompt),
            prompts={**self.prompts, **prompts},
            query_of={**self.query_of, name: queries[0]} if queries else self.query_of,
            adapters=(
                *(ref for ref in self.adapters if ref.tasks[0] != name),
                AdapterRef(tuple(prompts), path, sha256),
            ),
        )

    def seeing(self) -> ModelSpec:
        """Returns the spec of the same model for pictures besides texts.

        Raises:
            ConfigError: The model takes texts only.
            ModelError: Its checkpoint does not say how pictures are prepared.
        """
        if self.pictures is None:
            folder = folder_of(self)
            with checkpoint.understanding(folder):
                facts, _ = detect(
                    checkpoint.read_json(folder / "config.json"), read_tensors(folder)[1], where=str(folder)
                )
                if facts.tower:
                    picture_settings(EncoderSettings(self.model), folder)  # raises
            raise ConfigError(f"model {self.model} takes texts only: its checkpoint has no vision tower.")
        return replace(self, modality="page")

    def query_side(self) -> ModelSpec:
        """Returns the spec that encodes queries against vectors of this spec: with all vectors of a picture that is one."""
        task = self.query_of.get(self.task)
        return replace(self if task is None else self.with_task(task), multi_pool=None)


def check_task(task: str, tasks: tuple[str, ...], *, where: str) -> None:
    """Raises `ConfigError` unless `task` is one of `tasks`."""
    if task not in tasks:
        known = f"its tasks are {', '.join(tasks)}" if tasks else "it has no tasks; leave `task` out"
        raise ConfigError(f"model {where} has no task {task!r}: {known}.")


def describe(model: str | Path | EncoderSettings, **others: Any) -> ModelSpec:
    """Detects the model of a checkpoint and checks the settings against it.

    Args:
        model: Settings, or a hub id or local directory.
        others: With a hub id or directory: the other attributes of `EncoderSettings`.

    Raises:
        ConfigError: A setting does not fit the model.
        ModelError: The checkpoint is missing, incomplete or not supported.
    """
    settings = EncoderSettings.of(model, **others)
    if settings.dtype not in _PRECISIONS:
        raise ConfigError(f"dtype {settings.dtype!r} is not known; use one of {', '.join(_PRECISIONS)}.")
    root, commit = checkpoint.resolve(settings.model, settings.revision)
    with checkpoint.understanding(root):
        repository = read_repository(root)
        folder = repository.folder
        config = checkpoint.read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise ModelError(f"{folder} has no config.json. Give the folder of a complete checkpoint.")
        files, tensors = read_tensors(folder)
        facts, named = detect(config, tensors, where=str(folder))
        own_outputs, dim = choose_outputs(settings, facts)
        facts = facts.with_outputs(own_outputs)
        check_tensors(facts, named, where=str(folder))
        check_adapters(facts, folder)
        checkpoint.check_tokenizer(folder)
        tasks, prompts, default_task, query_of = _tasks(facts, repository)
        spec = ModelSpec(
            model=settings.model,
            revision=commit,
            path=str(folder),
            family=facts.family,
            variant=facts.variant,
            hidden=facts.hidden,
            dim=dim,
            max_tokens=_max_tokens(settings, facts, repository),
            task=None,
            tasks=tasks,
            prompt=settings.prompt or "",
            prompts=prompts,
            query_of=query_of,
            pooling=repository.pooling or facts.pooling,
            normalize=True,
            precision=_PRECISIONS[settings.dtype],
            lowercase=repository.lowercase,
            weights_sha256="",
            config_sha256=checkpoint.sha256_config(config),
            tokenizer_sha256=checkpoint.sha256_files(folder, ["tokenizer.json"]),
            vocab_size=facts.vocab_size,
            modality=facts.modality,
            own_outputs=own_outputs,
            pictures=_pictures(settings, facts, folder),
            markers=None if facts.markers is None else facts.markers(checkpoint.token_ids(folder / "tokenizer.json")),
            multi_pool=settings.multi_pool,
            multi_keep=settings.multi_keep,
        )
        spec = _with_task(_with_adapters(spec, settings, facts), settings, default_task, facts)
        # The weights are read last, so that a wrong setting is reported before that.
        return replace(spec, weights_sha256=checkpoint.sha256_files(folder, (*files, *facts.extra_files)))


def _with_adapters(spec: ModelSpec, settings: EncoderSettings, facts: FamilyFacts) -> ModelSpec:
    """Returns the spec with the adapters of the settings, each checked against the model."""
    if settings.adapters and not facts.targets:
        raise takes_no_adapters(spec.model, spec.family)
    for name, adapter in settings.adapters.items():
        prompts = adapter.prompts(name)
        if taken := [task for task in prompts if task in spec.tasks]:
            raise ConfigError(
                f"adapter {name!r}: {taken[0]!r} is a task of {spec.model} already; its tasks are "
                f"{', '.join(spec.tasks)}. Give the adapter another name."
            )
        added = [(prompts, adapter.path)]
        if adapter.query_path is not None:  # replaces the first for the task of queries
            added.append(({task: prompt for task, prompt in prompts.items() if task != name}, adapter.query_path))
        for tasks, path in added:
            with adapter_folder(next(iter(tasks)), path) as folder:
                read_adapter(folder, facts.targets)
                spec = spec.with_adapter(tasks, path, sha256_adapter(folder))
    return spec


def _with_task(spec: ModelSpec, settings: EncoderSettings, default_task: str | None, facts: FamilyFacts) -> ModelSpec:
    """Returns the spec with the task and the prompt of the settings."""
    task = settings.task if settings.task is not None else default_task
    if task is None:
        if facts.needs_task:
            raise TaskMissing(
                f"model {spec.model} needs a task, which chooses its adapter and its prompt: one of "
                f"{', '.join(spec.tasks)}. Set `task`."
            )
        return spec
    if settings.prompt is not None:
        spec = replace(spec, prompts={**spec.prompts, task: settings.prompt})
    return spec.with_task(task)


def _pictures(settings: EncoderSettings, facts: FamilyFacts, folder: Path) -> PictureSettings | None:
    """Returns the settings of pictures; None for a model that takes texts only."""
    asked = chosen(settings)
    if not facts.tower:
        if asked:
            raise ConfigError(
                f"encoder.{asked[0]} is for pictures, and {settings.model} takes texts only. Leave it out."
            )
        return None
    try:
        return picture_settings(settings, folder)
    except ModelError:
        if asked:
            raise
        return None  # texts need no such file; `seeing` raises the error


def _tasks(
    facts: FamilyFacts, repository: Repository
) -> tuple[tuple[str, ...], dict[str, str], str | None, dict[str | None, str]]:
    """Returns tasks, prompts, default task and query tasks: the family's own, else the repository's named prompts."""
    if facts.tasks or not repository.prompts:
        return facts.tasks, dict(facts.prompts), facts.default_task, dict(facts.query_of)
    names = tuple(repository.prompts)
    query_of: dict[str | None, str] = {}
    if "query" in names:
        query_of = {side: "query" for side in (None, "document", "passage") if side is None or side in names}
    default = repository.default_prompt if repository.default_prompt in names else None
    return names, dict(repository.prompts), default, query_of


def _max_tokens(settings: EncoderSettings, facts: FamilyFacts, repository: Repository) -> int:
    if settings.max_tokens is None:
        configured = repository.max_tokens if facts.trust_repo_max_tokens else None
        if isinstance(configured, str) or (configured is not None and configured < SHORTEST_TEXT):
            raise ModelError(
                f"{repository.folder} has max_seq_length {configured}, which must be a whole number of "
                f"{SHORTEST_TEXT} or more, or null for what the model takes ({facts.max_tokens}). Set max_tokens, or fix the file."
            )
        return min(configured or facts.default_max_tokens or facts.max_tokens, facts.max_tokens)
    if not SHORTEST_TEXT <= settings.max_tokens <= facts.max_tokens:
        raise ConfigError(
            f"max_tokens {settings.max_tokens} is outside {SHORTEST_TEXT}..{facts.max_tokens}, what {settings.model} can take."
        )
    return settings.max_tokens


def folder_of(spec: ModelSpec) -> Path:
    """Returns the spec's directory on this machine, downloaded if necessary.

    A spec is created on the driver and used on workers, where a hub snapshot may not be at the driver's path.

    Raises:
        ModelError: It is not on this machine and cannot be downloaded.
    """
    folder = Path(spec.path)
    if folder.is_dir():
        return folder
    root, _ = checkpoint.resolve(spec.model, spec.revision)
    return read_repository(root).folder
