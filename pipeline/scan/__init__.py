"""Exact nearest rows of a table by scanning all of its vectors."""
