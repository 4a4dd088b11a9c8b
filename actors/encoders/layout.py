"""The result of a family's layout for a checkpoint, and the check that every tensor it needs is present.

Torch-free. `describe` runs the check on the driver, so that an incomplete checkpoint fails at plan time and not on
the workers. The loader runs it again, because a worker may read another copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.encoders.checkpoint import TensorInfo
from actors.encoders.lora.files import AdapterFiles, Target, read_adapter
from actors.errors import ModelError
from actors.vectors import VectorColumn, has_many

Config = Mapping[str, Any]
Tensors = Mapping[str, TensorInfo]
_NAMED = 8
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Markers:
    """Tokens by which a model of late interaction tells queries and texts apart.

    Attributes:
        of_task: The token after the first special token, by task.
        query: The task of queries.
        query_tokens: Each query has this many tokens: a longer one is cut, a shorter one is filled up with `filler`.
        filler: A token that is put behind queries.
        skipped: Tokens without a vector in texts that are no queries.
    """

    of_task: Mapping[str, int] = field(hash=False)
    query: str
    query_tokens: int
    filler: int
    skipped: tuple[int, ...]

    def put(self, ids: list[int], task: str | None) -> tuple[list[int], bool]:
        """Returns the tokens of a text, which begin and end with a special token, with those of its task, and if it was cut."""
        if task is None or task not in self.of_task:
            return ids, False
        if task != self.query:
            return [ids[0], self.of_task[task], *ids[1:]], False
        marked = [ids[0], self.of_task[task], *ids[1:-1][: self.query_tokens - 3], ids[-1]]
        return marked + [self.filler] * (self.query_tokens - len(marked)), len(ids) >= self.query_tokens


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """A recognised checkpoint.

    Attributes:
        family: Key of `families.detect.FAMILIES`.
        variant: Name of the published layout within the family ("" if there is one only).
        hidden: Width of the token states.
        max_tokens: Largest number of tokens (special ones included) that the model accepts.
        needed: Every tensor the model needs, by its full name in the file, with its shape.
        ignorable: Regular expressions (whole names) of tensors that may be present and are not used.
        prefix: Prefix of every name in this file, such as "bert.".
        vocab_size: Rows of the word table: token ids are 0 to `vocab_size - 1`.
        pooling: "mean", "cls" or "last"; used if the repository does not specify it.
        tasks: Allowed values of `task`. Empty: the model has no tasks.
        default_task: The task used when none is named; None means none.
        needs_task: A task must be named, because the model's vectors are of no use without one.
        prompts: Text put before each text, by task.
        query_of: Task for queries against vectors of a task, if it is another one. Key None is "no task".
        dims: Trained shorter dimensions, smallest first; None if the model was trained for its full width only.
        default_max_tokens: Used when neither the user nor the repository gives one; None means `max_tokens`.
        trust_repo_max_tokens: False if published revisions disagree about `max_seq_length`.
        extra_files: Weight files outside the root (adapters), relative to the folder.
        adapters: PEFT folders of the checkpoint's own adapters, relative to the folder, by the adapters' names.
        shared_adapters: All adapters are in one file, distinguished by their names in it, and each changes every linear
            layer that is used.
        adapters_key: The setting of config.json that lists them.
        modality: Key of `actors.inputs.MODALITIES`: the content that the model takes.
        outputs: Vectors of a row in a family that leaves no choice; empty: the settings choose.
        multi_dim: Width of the vectors of late interaction; 0: the model has none.
        multi_needed: The tensors that only these vectors need, like `needed`.
        tower: Prefix of the tensors of the vision tower; empty if the model takes texts only.
        targets: Layers that a LoRA adapter may change, by their names in PEFT's files; empty if the family has none.
        markers: Returns the marker tokens, of the ids of the tokenizer's tokens; None if the model has none.
        encoded: The dense vector is an encoding of the vectors of late interaction (`muvera`), whose width is `dim`.
    """

    family: str
    hidden: int
    max_tokens: int
    needed: Mapping[str, tuple[int, ...]]
    ignorable: tuple[str, ...] = ()
    variant: str = ""
    prefix: str = ""
    vocab_size: int = 0
    pooling: str = "mean"
    tasks: tuple[str, ...] = ()
    default_task: str | None = None
    needs_task: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    query_of: Mapping[str | None, str] = field(default_factory=dict)
    dims: tuple[int, ...] | None = None
    default_max_tokens: int | None = None
    trust_repo_max_tokens: bool = True
    extra_files: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)
    shared_adapters: bool = False
    adapters_key: str = ""
    modality: str = "text"
    outputs: tuple[VectorColumn, ...] = ()
    multi_dim: int = 0
    multi_needed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tower: str = ""
    targets: Mapping[str, Target] = field(default_factory=dict)
    markers: Callable[[Mapping[str, int]], Markers] | None = None
    encoded: bool = False

    def with_outputs(self, outputs: Collection[VectorColumn]) -> FamilyFacts:
        """Returns the facts with what these outputs need: many vectors a row need more tensors, and adapters of all layers."""
        if not has_many(outputs):
            return self
        targets = {name: replace(target, idle=False) for name, target in self.targets.items()}
        return replace(self, needed={**self.needed, **self.multi_needed}, targets=targets)

    def adapter(self, folder: Path, name: str) -> AdapterFiles:
        """Reads and checks one of `adapters` in the checkpoint at `folder`.

        Raises:
            ModelError: See `lora.files.read_adapter`.
        """
        other_names = [other for other in self.adapters if other != name]
        return (
            read_adapter(folder / self.adapters[name], self.targets, named=name, other_names=other_names, whole=True)
            if self.shared_adapters
            else read_adapter(folder / self.adapters[name], self.targets)
        )


def check_tensors(facts: FamilyFacts, tensors: Tensors, *, where: str) -> None:
    """Raises unless the checkpoint has exactly the tensors that the family needs, plus tensors known to be unused.

    Raises:
        ModelError: Tensors are missing, of another shape or type, or unknown; names them.
    """
    missing = [name for name in facts.needed if name not in tensors]
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} of {len(facts.needed)} tensors that family {facts.family!r} needs: "
            f"{_some(missing)}. Encoding without them would give random vectors. Use a complete checkpoint."
        )
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in facts.needed.items()
        if tensors[name].shape != tuple(shape)
    ]
    if wrong:
        raise ModelError(f"{where} has tensors of other shapes than its config.json says: {_some(wrong)}.")
    not_floats = [f"{name} ({tensors[name].dtype})" for name in facts.needed if tensors[name].dtype not in _FLOATS]
    if not_floats:
        raise ModelError(
            f"{where} has {len(not_floats)} tensors of types that are no weights: {_some(not_floats)}. Known types are "
            f"{', '.join(_FLOATS)}. Take a checkpoint that is not quantized."
        )
    idle = [re.compile(pattern) for pattern in facts.ignorable]
    unknown = [
        name for name in tensors if name not in facts.needed and not any(pattern.fullmatch(name) for pattern in idle)
    ]
    if unknown:
        raise ModelError(
            f"{where} has {len(unknown)} tensors that family {facts.family!r} does not know: {_some(unknown)}. "
            "Leaving them out could change the vectors, so the checkpoint is refused."
        )


def check_adapters(facts: FamilyFacts, folder: Path) -> None:
    """Raises unless every adapter that the checkpoint must contain is present and fits.

    Raises:
        ModelError: Names the folder that is missing, or the mismatch.
    """
    absent = [sub for sub in dict.fromkeys(facts.adapters.values()) if not (folder / sub).is_dir()]
    if absent:
        raise ModelError(
            f"{folder} lacks the adapter folders {_some(absent)}. Fetch the checkpoint again with its subfolders, or "
            f"set `{facts.adapters_key}` in config.json to the list of those that are there."
        )
    for name in facts.adapters:
        facts.adapter(folder, name)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def check_encoder(config: Config, family: str) -> None:
    """Raises if a config asks for a decoder, whose tokens attend only to those before them.

    Raises:
        ModelError: Names the setting and the fix.
    """
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise ModelError(
                f"config.json has {key} {config[key]!r}, which makes it a decoder; family {family!r} is an encoder, whose tokens "
                f"see all others. Set {key} to false if the model was trained as an encoder, or take another one."
            )


def config_int(config: Config, key: str) -> int:
    """A size or a count from config.json, 1 or more.

    Raises:
        ModelError: It is not there or not such a number.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"config.json has {key} = {value!r} where a whole number of 1 or more is needed. Fetch the checkpoint again."
        )
    return value
