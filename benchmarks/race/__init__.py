"""Races of vectide against other ways to make embeddings, side by side on one machine. Called by `python -m benchmarks`."""
