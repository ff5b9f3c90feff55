"""The command line: `python -m tfqil inspect | verify | benchmark`."""

from __future__ import annotations

from tfqil.cli import main

if __name__ == "__main__":
    main.main()
