"""Exact products of queries with a table's vectors."""
