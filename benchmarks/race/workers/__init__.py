"""One script for each engine, run in that engine's own environment: only what they import from here is shared."""
