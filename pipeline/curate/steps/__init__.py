"""The steps of a curation, a file each."""
