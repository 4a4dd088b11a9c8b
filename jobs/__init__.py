"""The commands: read arguments and a job file, call one pipeline, print the outcome."""
