"""Data of one unit: its batch, its receipt and its table files."""
