"""Entry point of `python -m jobs` and of the console script `vectide`."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
