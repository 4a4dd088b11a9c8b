"""`python -m jobs` and the console script `vectide`."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
