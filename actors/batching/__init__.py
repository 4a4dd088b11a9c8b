"""Micro-batches: the rows of each (`planner`, pure) and its number of tokens (`budget`)."""
