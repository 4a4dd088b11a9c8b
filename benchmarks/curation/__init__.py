"""Speed and truth of the steps of a curation, a module a step: `python -m benchmarks curation STEP`."""
