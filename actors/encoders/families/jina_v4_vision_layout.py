"""Layout of v4's vision tower, which is that of Qwen2.5-VL. Torch-free.

The names of its tensors begin with `visual.` (the main repository, and files from before transformers 4.52) or with
`model.visual.`. A checkpoint without such tensors takes texts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.encoders.layout import Config, Tensors, config_int
from actors.errors import ModelError

# A token that the language model gets is a square of 2 x 2 patches of 14 x 14 pixels. A picture counts as two equal frames.
PATCH = 14
MERGE = 2
FRAMES = 2
CHANNELS = 3
THETA = 10_000.0
_PREFIXES = ("visual.", "model.visual.")
_WINDOW_PIXELS = 112
_WHOLE = (7, 15, 23, 31)
# transformers does not write values that are its defaults.
_DEFAULTS = {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
_KNOWN = {
    "hidden_act": "silu",
    "in_channels": CHANNELS,
    "in_chans": CHANNELS,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "spatial_patch_size": PATCH,
    "temporal_patch_size": FRAMES,
}


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """Sizes of a vision tower.

    Attributes:
        blocks: Number of blocks.
        hidden: Width of the patches' states.
        inner: Width inside the MLP.
        heads: Attention heads.
        out: Width of the states of the merged tokens, which is that of the language model.
        window: Merged tokens along each side of a window.
        whole: Blocks in which a patch attends to its whole picture; in the others it attends to its window.
    """

    blocks: int
    hidden: int
    inner: int
    heads: int
    out: int
    window: int
    whole: frozenset[int]


def tower_prefix(tensors: Tensors) -> str:
    """Returns the prefix of the tower's tensors, empty if there are none."""
    return next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in tensors)), "")


def tower_sizes(config: Config, out: int) -> TowerSizes:
    """Returns the sizes of the tower.

    Args:
        config: config.json.
        out: Width of the language model.

    Raises:
        ModelError: `vision_config` is not there, or describes a tower that is not supported.
    """
    found = config.get("vision_config")
    if not isinstance(found, Mapping):
        raise ModelError(
            f"config.json has vision_config {found!r} where the settings of a vision tower are needed. Fetch the "
            "checkpoint again."
        )
    vision = {**_DEFAULTS, **found}
    for key, known in _KNOWN.items():
        if vision.get(key, known) != known:
            raise ModelError(
                f"config.json has {key} {vision[key]!r} in vision_config; family 'jina_v4' knows {known!r} only."
            )
    hidden, heads = config_int(vision, "hidden_size"), config_int(vision, "num_heads")
    if hidden % (4 * heads):
        raise ModelError(
            f"config.json has hidden_size {hidden} in vision_config, not a multiple of 4 * num_heads {heads}."
        )
    theta = (vision.get("rope_parameters") or {}).get("rope_theta", THETA)
    pixels = vision.get("window_size", _WINDOW_PIXELS)
    whole = vision.get("fullatt_block_indexes", _WHOLE)
    if theta != THETA or type(pixels) is not int or pixels < PATCH * MERGE or pixels % (PATCH * MERGE):
        raise ModelError(
            f"config.json has rope_theta {theta!r} and window_size {pixels!r} in vision_config; family 'jina_v4' knows "
            f"{THETA} and multiples of {PATCH * MERGE} only."
        )
    if not isinstance(whole, list | tuple) or not all(type(block) is int for block in whole):
        raise ModelError(f"config.json has fullatt_block_indexes {whole!r} where a list of numbers is needed.")
    if config_int(vision, "out_hidden_size") != out:
        raise ModelError(
            f"config.json has out_hidden_size {vision['out_hidden_size']} in vision_config, and the language model has "
            f"hidden_size {out}."
        )
    return TowerSizes(
        blocks=config_int(vision, "depth"),
        hidden=hidden,
        inner=config_int(vision, "intermediate_size"),
        heads=heads,
        out=out,
        window=pixels // (PATCH * MERGE),
        whole=frozenset(whole),
    )


def tower_tensors(sizes: TowerSizes) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a tower by their names after the prefix, with their shapes."""
    hidden, inner, merged = sizes.hidden, sizes.inner, MERGE**2 * sizes.hidden
    linears = {"merger.mlp.0": (merged, merged), "merger.mlp.2": (sizes.out, merged)}
    norms = ["merger.ln_q"]
    for i in range(sizes.blocks):
        block = f"blocks.{i}"
        linears[f"{block}.attn.qkv"] = (3 * hidden, hidden)
        linears[f"{block}.attn.proj"] = (hidden, hidden)
        linears |= {f"{block}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        linears[f"{block}.mlp.down_proj"] = (hidden, inner)
        norms += [f"{block}.norm1", f"{block}.norm2"]
    return {
        "patch_embed.proj.weight": (hidden, CHANNELS, FRAMES, PATCH, PATCH),
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{f"{name}.weight": (hidden,) for name in norms},
    }
