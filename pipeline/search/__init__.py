"""Search in a table: the searcher and its SQL filter."""
