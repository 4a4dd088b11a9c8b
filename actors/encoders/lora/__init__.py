"""LoRA adapters: their files, their weights, the registry at run time."""
