"""Command line: reads arguments and a job file, calls one pipeline, prints the outcome."""
