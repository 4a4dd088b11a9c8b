"""Reference for v4: transformers' own Qwen2.5-VL with PEFT's adapters, one text at a time, without padding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from tests.checkpoints.jina_v3 import write_peft
from tests.checkpoints.jina_v4 import ADAPTERS

Floats = npt.NDArray[np.float32]


def split_adapters(folder: Path, out: Path) -> dict[str, Path]:
    """Writes the adapters of a checkpoint as ordinary PEFT folders, without the projector's factors."""
    factors = load_file(folder / "adapters" / "adapter_model.safetensors")
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    folders = {}
    for name in ADAPTERS:
        own = {
            key.replace(f".{name}.weight", ".weight"): tensor
            for key, tensor in factors.items()
            if key.endswith(f".{name}.weight") and "projector" not in key
        }
        folders[name] = write_peft(out / name, own, r=config["r"], lora_alpha=config["lora_alpha"])
        # A list of names would match the vision tower's layers too.
        settings = json.loads((out / name / "adapter_config.json").read_text())
        (out / name / "adapter_config.json").write_text(json.dumps(settings | {"exclude_modules": ".*visual.*"}))
    return folders


class Oracle:
    """A checkpoint of any layout; `adapters` are PEFT folders by name."""

    def __init__(self, folder: Path, adapters: dict[str, Path] | None = None) -> None:
        from peft import PeftModel
        from transformers import Qwen2_5_VLForConditionalGeneration

        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        base, info = loaded
        assert not info["missing_keys"]
        assert all(name.startswith("multi_vector_projector") for name in info["unexpected_keys"])
        self._tower = base.model  # PEFT inserts the adapters into this object
        self._peft: Any = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT imports a deprecated name from transformers
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # no head is used
            for name, at in (adapters or {}).items():
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(base, at, adapter_name=name)
                else:
                    self._peft.load_adapter(at, adapter_name=name)
        base.eval()
        self._states = cache(self._compute)  # several layouts are compared with the same states

    def states(self, ids: Sequence[int], adapter: str | None) -> Floats:
        """Returns the states of one text, float32 [tokens, hidden], with the model's default positions."""
        return self._states(tuple(ids), adapter)

    @torch.no_grad()
    def _compute(self, ids: tuple[int, ...], adapter: str | None) -> Floats:
        if self._peft is None:
            return self._run(ids)
        if adapter is None:
            with self._peft.disable_adapter():
                return self._run(ids)
        self._peft.set_adapter(adapter)
        return self._run(ids)

    def vectors(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> Floats:
        means = [self.states(ids, adapter).mean(0) for ids, adapter in zip(rows, adapters, strict=True)]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    def _run(self, ids: Sequence[int]) -> Floats:
        states: Floats = self._tower(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        return states
