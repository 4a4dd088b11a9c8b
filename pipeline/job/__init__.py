"""The job file: its keys, its validation, and the fingerprint that a job has."""
