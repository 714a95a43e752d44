"""The command `python -m embspace_helpers.reproduce`."""

from embspace_helpers.workshop.reproduce import main

if __name__ == "__main__":
    main()
