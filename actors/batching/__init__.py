"""Micro-batches: which rows go through a model together (`planner`, pure) and how many tokens at once (`budget`)."""
