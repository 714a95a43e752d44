"""The command `python -m embspace_helpers.displacement`."""

from embspace_helpers.workshop.measure_displacement import main

if __name__ == "__main__":
    main()
