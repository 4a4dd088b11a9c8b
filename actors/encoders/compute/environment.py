"""Environment variables of a process that runs an encoder on a CPU. Torch-free: they are set before torch is imported."""

from __future__ import annotations

# oneDNN keeps a compiled kernel of some 0.7 MiB for each input length, and every micro-batch has a length of its own. The
# cap bounds the memory of a process that encodes for hours.
ENCODER_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
