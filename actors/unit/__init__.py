"""A unit after reading: its batch, its receipt, its table files."""
