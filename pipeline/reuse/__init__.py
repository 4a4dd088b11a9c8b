"""Reuse of stored vectors for known texts, found by content hash."""
