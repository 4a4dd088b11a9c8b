"""Toy model families, for what no real family has yet. They are registered as real families are."""
