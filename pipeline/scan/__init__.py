"""Exact nearest rows of a table by scanning all of its vectors."""

DEFAULT_CACHE_SIZE = "20GiB"  # here, so that the command line need not import the cache
FILE_BITS = 40  # positions in a scan: the number of the file above, the row in the file below
