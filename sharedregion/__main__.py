"""`python -m sharedregion` is the command `sharedregion`."""

from sharedregion.cli import main

if __name__ == "__main__":
    main()
