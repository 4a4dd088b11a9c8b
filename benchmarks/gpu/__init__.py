"""Rates of a CUDA GPU: tokens a second and share of its bfloat16 limit by model shape, pages a second, and its idle share.

Called by `make bench-gpu`, as `python -m benchmarks gpu`. Weights are random, shapes are the published ones, token ids are
random in three mixes of lengths: what is measured does not depend on what a model knows. sentence-transformers runs the
shapes that it has without remote code, on the same ids in padded batches sorted by length. Everything but the idle share
runs on a CPU too (`--cpu`), so that it is tested on machines without a GPU.
"""
