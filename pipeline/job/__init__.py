"""The job file: its keys, their validation and reference, and the fingerprint of a job."""
