"""Model families: for each, the layout of its published checkpoints and its forward pass."""
