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
from typing import Any, Protocol

from actors.encoders.lora.files import adapter_folder, sha256_adapter
from actors.encoders.lora.store import AdapterStore
from actors.encoders.spec import ModelSpec, check_task
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
            path: PEFT folder: a local directory, a URL or a hub id.
            prompt: Text put before each text of this task; None keeps the task's prompt (a new task: no prompt).

        Raises:
            ModelError: The adapter does not fit this model; nothing was changed.
        """
        if not name:
            raise ConfigError("an adapter needs a name that is not empty: it becomes a value of `task`.")
        spec = self._encoder.spec
        tasks = next((ref.tasks for ref in spec.adapters if ref.tasks[0] == name), (name,))
        prompts = {task: spec.prompts.get(task, "") for task in tasks}
        with adapter_folder(name, str(path)) as folder:
            self._store.load(tasks, folder)
            sha256 = sha256_adapter(folder)
        self._encoder.use_spec(
            spec.with_adapter(prompts if prompt is None else {**prompts, name: prompt}, str(path), sha256)
        )

    def remove(self, name: str) -> None:
        """Removes an adapter and its task.

        Raises:
            ConfigError: There is none of this name, or it is the encoder's own task.
        """
        spec = self._encoder.spec
        check_task(name, spec.tasks, where=spec.model)
        if name not in self.names:
            raise ConfigError(f"{name!r} is a task of {spec.model} without an adapter, so there is nothing to remove.")
        names = next((ref.tasks for ref in spec.adapters if ref.tasks[0] == name), (name,))
        if spec.task in names:
            raise ConfigError(f"adapter {name!r} is the encoder's own task. Load an encoder with another task first.")
        self._encoder.use_spec(
            replace(
                spec,
                tasks=tuple(task for task in spec.tasks if task not in names),
                prompts={task: text for task, text in spec.prompts.items() if task not in names},
                adapters=tuple(ref for ref in spec.adapters if ref.tasks[0] not in names),
            )
        )
        self._store.remove(names)


def add_adapters(family: Any, spec: ModelSpec) -> None:
    """Loads the adapters that a spec lists into a family that was just built.

    Raises:
        ModelError: An adapter cannot be read on this machine, or has another hash than the spec's.
    """
    for ref in spec.adapters:
        with adapter_folder(ref.tasks[0], ref.path) as folder:
            family.adapters.load(ref.tasks, folder)
            if sha256_adapter(folder) != ref.sha256:
                raise ModelError(
                    f"{ref.path} is not the one that the plan was made with. Put the same adapter on every machine."
                )
