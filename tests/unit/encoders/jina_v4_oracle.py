"""Reference for v4: transformers' own Qwen2.5-VL with PEFT's adapters, one text or picture at a time, without padding."""

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
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.checkpoints.jina_v3 import write_peft
from tests.checkpoints.jina_v4 import ADAPTERS

Floats = npt.NDArray[np.float32]


def split_adapters(folder: Path, out: Path) -> dict[str, Path]:
    """Writes the adapters of a checkpoint as ordinary PEFT folders."""
    factors = load_file(folder / "adapters" / "adapter_model.safetensors")
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    folders = {}
    for name in ADAPTERS:
        own = {
            key.replace(f".{name}.weight", ".weight"): tensor
            for key, tensor in factors.items()
            if key.endswith(f".{name}.weight")
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
        if info["unexpected_keys"]:
            tensors = {name: load_file(folder / "model.safetensors")[name].float() for name in info["unexpected_keys"]}
            width, hidden = tensors["multi_vector_projector.weight"].shape
            base.multi_vector_projector = torch.nn.Linear(hidden, width)
            base.load_state_dict(tensors, strict=False)
        self._base = base  # PEFT inserts the adapters into this object
        self._tower = base.model
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

    def states(self, ids: Sequence[int], adapter: str | None, pixels: npt.NDArray[np.uint8] | None = None) -> Floats:
        """Returns the states of one row, float32 [tokens, hidden], with the model's default positions.

        Args:
            ids: Its tokens.
            adapter: Name of the adapter.
            pixels: uint8 RGB [height, width, 3] of a picture, resized already; None for a text.
        """
        return self._states(tuple(ids), adapter) if pixels is None else self._compute(tuple(ids), adapter, pixels)

    @torch.no_grad()
    def _compute(
        self, ids: tuple[int, ...], adapter: str | None, pixels: npt.NDArray[np.uint8] | None = None
    ) -> Floats:
        if self._peft is None:
            return self._run(ids, pixels)
        if adapter is None:
            with self._peft.disable_adapter():
                return self._run(ids, pixels)
        self._peft.set_adapter(adapter)
        return self._run(ids, pixels)

    @torch.no_grad()
    def many(self, ids: Sequence[int], adapter: str, pixels: npt.NDArray[np.uint8] | None = None) -> Floats:
        """Returns the vectors of late interaction of one row, float32 [tokens, width]; arguments as for `states`."""
        states = torch.from_numpy(self.states(ids, adapter, pixels))
        if self._peft is not None:
            self._peft.set_adapter(adapter)
        vectors: Floats = torch.nn.functional.normalize(self._base.multi_vector_projector(states), dim=1).numpy()
        return vectors

    def vectors(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> Floats:
        means = [self.states(ids, adapter).mean(0) for ids, adapter in zip(rows, adapters, strict=True)]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    @torch.no_grad()
    def merged(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Returns the vision tower's states of a picture's tokens."""
        values, grid = patches(pixels)
        states: Floats = self._tower.visual(values, grid_thw=grid).pooler_output.numpy()
        return states

    def _run(self, ids: Sequence[int], pixels: npt.NDArray[np.uint8] | None) -> Floats:
        rows = torch.tensor([ids])
        seen: dict[str, Any] = {}
        if pixels is not None:
            values, grid = patches(pixels)
            # Without the types of the tokens, transformers gives a picture's tokens the positions of a text.
            types = (rows == self._tower.config.image_token_id).int()
            seen = {"pixel_values": values, "image_grid_thw": grid, "mm_token_type_ids": types}
        states: Floats = self._tower(input_ids=rows, **seen).last_hidden_state[0].numpy()
        return states


def patches(pixels: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns transformers' `pixel_values` and `image_grid_thw` of a picture that has its final size."""
    made = Qwen2VLImageProcessorPil(do_resize=False)(
        images=[pixels], return_tensors="pt", input_data_format="channels_last"
    )
    return made["pixel_values"], made["image_grid_thw"]
