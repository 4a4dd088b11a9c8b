"""Source files: what to read, and reading a unit of it."""
