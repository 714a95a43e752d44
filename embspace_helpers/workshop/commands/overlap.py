"""The command `python -m embspace_helpers.overlap`."""

from embspace_helpers.workshop.measure_overlap import main

if __name__ == "__main__":
    main()
