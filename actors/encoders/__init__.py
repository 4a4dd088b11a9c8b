"""The encoders: texts or token ids in, unit vectors out, one interface for every model family.

Used by the encode actors, the search command and people in a notebook. Importing this package, `describe` and
`ModelSpec` must stay free of torch, because readers, writers and the driver import them; `load_encoder` imports it
when called.

How a family is made of parts (to add one, touch these three places and no other):

1. `layout_<family>.py`, torch-free: recognises a checkpoint by config and tensor names and returns a `FamilyFacts`
   (what tensors must be there, tasks, prompts, limits). Entered in `families.LAYOUTS`.
2. `<family>.py`, torch: a builder `build(checkpoint, compute) -> Family`. Entered by its path in `build.BUILDERS`.
   A `Family` only has to turn a `PackedBatch` into hidden states `[tokens, hidden]`; per-row tasks come in
   `batch.tasks`. Pooling, slicing and normalising belong to the encoder, so token states are there for late chunking.
3. `tests/checkpoints/`: a writer of a tiny random checkpoint in the exact published layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.encoders.spec import ModelSpec, describe

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

__all__ = ["ModelSpec", "describe", "load_encoder"]


def load_encoder(
    model: str | ModelSpec,
    *,
    device: str = "auto",
    threads: int | None = None,
    revision: str | None = None,
    task: str | None = None,
    dim: int | None = None,
    max_tokens: int | None = None,
    dtype: str = "auto",
    prompt: str | None = None,
    allow_untrained_dim: bool = False,
) -> Encoder:
    """Loads a model for encoding.

    Args:
        model: A hub id, a local directory, or a spec made by `describe` (then the settings below must be left alone).
        device: "auto" takes a GPU where there is one; else "cpu", "cuda", "cuda:1".
        threads: Torch threads on a CPU; None leaves the process as it is. One thread per process is fastest when
            there is one process per core.
        revision: Branch, tag or commit of a hub id; this and all below as for `describe`.
        task: One of the model's tasks; None takes its default.
        dim: Shorter vectors; None takes the full width.
        max_tokens: Limit per text; None takes the repository's.
        dtype: "auto", "bfloat16" or "float32".
        prompt: Text to put before each text instead of the published one.
        allow_untrained_dim: Shorten a model that was not trained for it.

    Raises:
        ConfigError: A setting is wrong.
        ModelError: The checkpoint is missing, incomplete or not understood.
    """
    from actors.encoders.encoder import Encoder

    if isinstance(model, ModelSpec):
        spec = model
    else:
        spec = describe(
            model,
            revision=revision,
            task=task,
            dim=dim,
            max_tokens=max_tokens,
            dtype=dtype,
            prompt=prompt,
            allow_untrained_dim=allow_untrained_dim,
        )
    return Encoder(spec, device=device, threads=threads)
