"""Source files: the check of a source, and the reader of a unit."""
