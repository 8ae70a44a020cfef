"""`python -m planter`: the same as `planter`."""

from planter.cli import main

if __name__ == "__main__":
    main()
