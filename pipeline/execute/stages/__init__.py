"""The three stages of every unit: read and tokenize, encode, write. `rewrite` copies rows of table files."""
