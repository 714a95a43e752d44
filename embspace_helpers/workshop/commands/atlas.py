"""The command `python -m embspace_helpers.atlas`."""

from embspace_helpers.workshop.atlases import main

if __name__ == "__main__":
    main()
