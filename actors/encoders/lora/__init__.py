"""LoRA adapters: files, weights, and the registry of a loaded encoder."""
