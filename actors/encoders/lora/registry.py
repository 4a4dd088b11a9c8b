"""Adds and removes adapters of a loaded encoder: `encoder.adapters.load("legal", "adapters/legal")`.

A change replaces the set of factors in the family's store and the encoder's spec with its tasks. Base weights and the
vectors of other tasks do not change. A change takes effect between micro-batches: make it between two calls of `encode` if
all rows of a call must be computed with the same set. The spec contains path and hash of each added adapter, so a worker
that gets the spec loads the same adapters or raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from actors.encoders.lora.files import sha256_adapter
from actors.encoders.lora.store import AdapterStore
from actors.encoders.spec import AdapterRef, ModelSpec, check_task
from actors.errors import ConfigError, ModelError


class _Encoder(Protocol):
    spec: ModelSpec

    def use_spec(self, spec: ModelSpec) -> None: ...


class AdapterRegistry:
    """The adapters of one encoder; returned by `encoder.adapters`."""

    def __init__(self, encoder: _Encoder, store: AdapterStore) -> None:
        self._encoder = encoder
        self._store = store

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, which are valid values of `task`."""
        return tuple(name for name in self._store.names if name in self._encoder.spec.tasks)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def load(self, name: str, path: str | Path, *, prompt: str | None = None) -> None:
        """Loads a PEFT folder as task `name`. An adapter with this name is replaced.

        Args:
            name: The task.
            path: Folder with adapter_config.json and adapter_model.safetensors.
            prompt: Text put before each text of this task; None keeps the task's prompt (a new task: no prompt).

        Raises:
            ModelError: The adapter does not fit this model; nothing was changed.
        """
        if not name:
            raise ConfigError("an adapter needs a name that is not empty: it becomes a value of `task`.")
        folder = Path(path).expanduser().resolve()
        self._store.load(name, folder)
        spec = self._encoder.spec
        prompts = {**spec.prompts, name: spec.prompts.get(name, "") if prompt is None else prompt}
        others = tuple(ref for ref in spec.adapters if ref.name != name)
        self._encoder.use_spec(
            replace(
                spec,
                tasks=(*spec.tasks, *(() if name in spec.tasks else (name,))),
                prompts=prompts,
                prompt=prompts[name] if name == spec.task and prompt is not None else spec.prompt,
                adapters=(*others, AdapterRef(name, str(folder), sha256_adapter(folder))),
            )
        )

    def remove(self, name: str) -> None:
        """Removes an adapter and its task.

        Raises:
            ConfigError: There is none of this name, or it is the encoder's own task.
        """
        spec = self._encoder.spec
        check_task(name, spec.tasks, where=spec.model)
        if name == spec.task:
            raise ConfigError(f"adapter {name!r} is the encoder's own task. Load an encoder with another task first.")
        self._encoder.use_spec(
            replace(
                spec,
                tasks=tuple(task for task in spec.tasks if task != name),
                prompts={task: text for task, text in spec.prompts.items() if task != name},
                adapters=tuple(ref for ref in spec.adapters if ref.name != name),
            )
        )
        self._store.remove(name)


def add_adapters(family: object, spec: ModelSpec) -> None:
    """Loads the adapters that a spec lists into a family that was just built.

    Raises:
        ModelError: An adapter is not on this machine, or has another hash than the spec's.
    """
    for ref in spec.adapters:
        store = getattr(family, "adapters", None)
        folder = Path(ref.path)
        if not isinstance(store, AdapterStore) or not folder.is_dir():
            raise ModelError(f"adapter {ref.name!r} at {ref.path} is not on this machine. Copy it to the same path.")
        store.load(ref.name, folder)
        if sha256_adapter(folder) != ref.sha256:
            raise ModelError(
                f"adapter {ref.name!r} at {ref.path} is not the one that the plan was made with. "
                "Put the same adapter on every machine."
            )
