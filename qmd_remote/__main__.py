"""`python -m qmd_remote` is the same program as `qmd-remote`."""

from qmd_remote.cli import main

if __name__ == "__main__":
    main()
