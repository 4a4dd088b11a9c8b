"""Reference for v3: transformers' own class with PEFT's adapters, one text at a time, without padding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.checkpoints.jina_v3 import TASKS


def folder_name(task: str) -> str:
    return task.replace(".", "_").replace("-", "_")


class Oracle:
    """A checkpoint in the native layout, with its adapters and the adapters in `others`."""

    def __init__(self, folder: Path, **others: Path) -> None:
        from peft import PeftModel
        from transformers import JinaEmbeddingsV3Model

        loaded: Any = JinaEmbeddingsV3Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        base, info = loaded
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        adapters = {folder_name(task): folder / folder_name(task) for task in TASKS} | others
        first, *rest = adapters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            self.model = PeftModel.from_pretrained(base, adapters[first], adapter_name=first)
            for name in rest:
                self.model.load_adapter(adapters[name], adapter_name=name)
        self.model.eval()
        self._states = cache(self._compute)  # several layouts are compared with the same states

    def states(self, ids: Sequence[int], task: str | None) -> npt.NDArray[np.float32]:
        return self._states(tuple(ids), task)

    @torch.no_grad()
    def _compute(self, ids: tuple[int, ...], task: str | None) -> npt.NDArray[np.float32]:
        name = "__base__" if task is None else folder_name(task)
        hidden = self.model(torch.tensor([ids]), adapter_names=[name]).last_hidden_state[0]
        array: npt.NDArray[np.float32] = hidden.numpy()
        return array

    def vectors(self, rows: Sequence[Sequence[int]], tasks: Sequence[str | None]) -> npt.NDArray[np.float32]:
        means = [self.states(ids, task).mean(0) for ids, task in zip(rows, tasks, strict=True)]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])
