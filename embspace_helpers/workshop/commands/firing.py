"""The command `python -m embspace_helpers.firing`."""

from embspace_helpers.workshop.measure_firing import main

if __name__ == "__main__":
    main()
