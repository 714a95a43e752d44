"""The command `python -m embspace_helpers.stitching`."""

from embspace_helpers.workshop.measure_stitching import main

if __name__ == "__main__":
    main()
