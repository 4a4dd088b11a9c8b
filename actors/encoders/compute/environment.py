"""Environment variables of a process that runs an encoder on a CPU. Torch-free: they must be set before torch is imported."""

from __future__ import annotations

# oneDNN caches a compiled kernel of about 0.7 MiB for each input length, and almost every micro-batch has another length.
# The limit bounds the memory of a process that encodes for hours.
ENCODER_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
