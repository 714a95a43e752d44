"""The command `python -m embspace_helpers.fetch`."""

from embspace_helpers.workshop.fetch import main

if __name__ == "__main__":
    main()
