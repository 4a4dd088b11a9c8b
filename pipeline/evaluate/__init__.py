"""Evaluation: what a table, a model or a form of its vectors is worth."""
