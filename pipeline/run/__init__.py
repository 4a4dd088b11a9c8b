"""Commands that write a version: backfill, refresh, re-embedding, retry, compaction; and the dry run."""
