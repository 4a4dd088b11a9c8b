"""Environment variables of a process that runs an encoder. Torch-free: they must be set before torch is imported."""

from __future__ import annotations

# On a CPU: oneDNN caches a compiled kernel of about 0.7 MiB for each input length, and almost every micro-batch has another length.
# The limit bounds the memory of a process that encodes for hours.
ENCODER_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}

# Almost every micro-batch has another size, the worst case for fragments in the GPU's memory.
GPU_ENV = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
