"""The record of a training in its `out` folder: `_vectide/training.json`, with the settings, and the result at the end.

A folder holds one training. Another setting is refused, with the key that differs: weights of two settings would be mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from actors import storage
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, DataError
from pipeline.job.places import places
from pipeline.job.training import Training
from pipeline.job.validation import shown
from pipeline.train.checkpoints import place

FORMAT = 1
_NAME = "training.json"
# Keys that change no weight, or only the place of the model, whose hashes are recorded.
_FREE = ("model", "revision", "budget_tokens", "checkpoint_steps")
_SHOWN = 5


@dataclass(slots=True)
class Record:
    """Content of the file.

    Attributes:
        settings: Everything that changes the weights, by key of the job file.
        data: Hash of the rows; empty before they were prepared.
        sources: Hash of the state of the files that the rows were read from.
        result: What `pipeline.train.trained.Trained` has; None before the end.
    """

    settings: dict[str, Any]
    data: str = ""
    sources: str = ""
    result: dict[str, Any] | None = None
    vectide: str = field(default_factory=lambda: metadata.version("vectide"))
    format: int = FORMAT

    def write(self, out: str) -> None:
        """Write the record of a folder."""
        storage.put(place(out, _NAME), json.dumps(asdict(self), indent=2, ensure_ascii=False).encode())


def settings_of(job: Training, spec: ModelSpec) -> dict[str, Any]:
    """Return the settings of a resolved job that change its weights, by key."""
    document = job.model_dump(mode="json", include={"train", "data"})
    for _, section, key in places(document):
        section[key] = storage.absolute(section[key])
    train = {key: value for key, value in document["train"].items() if key not in _FREE}
    hashes = {name: getattr(spec, f"{name}_sha256") for name in ("weights", "config", "tokenizer")}
    sources = {f"data.{number}": source for number, source in enumerate(document["data"])}
    return dict(_flat({"train": {"model": hashes, **train}, **sources}))


def open_record(out: str, settings: Mapping[str, Any]) -> Record:
    """Return the record of a folder, or a new one that is not written yet.

    Args:
        out: URL of the folder.
        settings: Those of the job.

    Raises:
        ConfigError: the folder has other files, or a training with another setting.
        DataError: the record cannot be read.
    """
    try:
        record = _read(out)
    except FileNotFoundError:
        _refuse_others(out)
        return Record(dict(settings))
    except NotADirectoryError:
        raise ConfigError(f"out.uri {out!r} is a file, or below one; name a folder") from None
    if record.format != FORMAT:
        raise ConfigError(
            f"{place(out, _NAME)!r} has format {record.format}, and this release reads {FORMAT}; use that release"
        )
    old, new = record.settings, json.loads(json.dumps(settings))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        lines = [f"\n  {key} is {_value(new, key)}, and was {_value(old, key)}" for key in changed[:_SHOWN]]
        more = [f"\n  and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
        raise ConfigError(
            f"{out!r} has a training with other settings. Set them back, or name another folder in out.uri:{''.join(lines + more)}"
        )
    return record


def read_record(out: str) -> Record | None:
    """Return the record of a folder; None if there is none.

    Raises:
        DataError: the record cannot be read.
    """
    try:
        return _read(out)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(out: str) -> Record:
    """Return the record of a folder; raise DataError unless it has the types that `Record.write` writes."""
    content = storage.read(place(out, _NAME))
    try:
        document = json.loads(content)
        record = Record(**document)
    except (ValueError, TypeError):
        raise not_a_record(out) from None
    types = {"settings": dict, "result": dict | None, "format": int}
    if not all(isinstance(document.get(name), kind) for name, kind in types.items()):
        raise not_a_record(out)
    return record


def not_a_record(out: str) -> DataError:
    """Return the error for a record that cannot be read."""
    return DataError(f"{place(out, _NAME)!r} is not the record of a training; name another folder in out.uri")


def _refuse_others(out: str) -> None:
    """Raise ConfigError if a folder without a record has files."""
    own = place(out)
    other = next((shard.path for shard in storage.walk(out) if not shard.path.startswith(f"{own}/")), None)
    if other is not None:
        raise ConfigError(f"out.uri {out!r} has other files, such as {other!r}; name a new folder, or an empty one")


def _value(settings: Mapping[str, Any], key: str) -> str:
    return shown(settings[key]) if settings.get(key) is not None else "not set"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", each
