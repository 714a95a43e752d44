"""The command `python -m embspace_helpers.jacobians`."""

from embspace_helpers.workshop.measure_jacobians import main

if __name__ == "__main__":
    main()
