"""Reads the rank and the alpha of the adapters that a checkpoint has itself. Torch-free."""

from __future__ import annotations

from actors.encoders.checkpoint import read_json, understanding
from actors.encoders.families.detect import detect
from actors.encoders.lora.files import CONFIG
from actors.encoders.spec import ModelSpec, folder_of
from actors.encoders.weight_files import read_tensors


def own_rank(spec: ModelSpec) -> tuple[int, float] | None:
    """Returns rank and alpha of the adapters of a checkpoint; None if it has none.

    Raises:
        ModelError: The checkpoint on this machine is incomplete.
    """
    folder = folder_of(spec)
    with understanding(folder):
        config = read_json(folder / "config.json")
        facts, _ = detect(config, read_tensors(folder)[1], where=str(folder))
        if facts.adapters:
            own = read_json(folder / next(iter(facts.adapters.values())) / CONFIG)
            return int(own["r"]), float(own["lora_alpha"])
        if facts.tasks and facts.variant == "hub":
            return int(config["lora_rank"]), float(config.get("lora_alpha", 1))
    return None
