"""Commands, one a module: the function that the command line calls, and the printer of its outcome."""
