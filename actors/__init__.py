"""Stages inside the workers: read, tokenize, encode, write. Plain classes and functions, no ray."""
