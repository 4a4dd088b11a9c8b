"""Losses of a training, each a module for the trainer of sentence-transformers that returns its terms by name."""
