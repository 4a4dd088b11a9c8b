"""Search over a table: the SQL filter and the question's path."""
