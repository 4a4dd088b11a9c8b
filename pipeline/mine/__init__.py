"""Hard negatives for pairs of texts, from a table of embeddings (docs/mining.md)."""
