"""Preparation of texts for the model: tokens, sentences, chunks."""
