"""One script for each way from Parquet to Parquet: `python -m benchmarks.race.ways.NAME CORPUS OUT MODEL MAX_TOKENS`."""
