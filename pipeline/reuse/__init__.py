"""Stored vectors of known texts, found by content hash."""
