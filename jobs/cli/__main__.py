"""Lets `python -m jobs.cli` do what `daskyard` does."""

from jobs.cli import main

if __name__ == "__main__":
    main()
