"""Everything that writes a version: backfill, refresh, re-embedding, compaction; and its dry run."""
