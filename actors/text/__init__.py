"""Text before the model: tokens, sentences, chunks."""
