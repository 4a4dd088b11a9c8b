"""The Delta table: reading its log, one commit, and the commands that work on versions."""
