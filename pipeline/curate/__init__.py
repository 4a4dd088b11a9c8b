"""Curation: filters over pairs or documents, with a verdict for every row (docs/curation.md)."""
