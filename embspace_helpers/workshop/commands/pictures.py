"""The command `python -m embspace_helpers.pictures`."""

from embspace_helpers.workshop.pictures import main

if __name__ == "__main__":
    main()
