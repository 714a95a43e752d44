"""The command `python -m embspace_helpers.alignment`."""

from embspace_helpers.workshop.measure_alignment import main

if __name__ == "__main__":
    main()
