"""The command `python -m embspace_helpers.readability`."""

from embspace_helpers.workshop.measure_readability import main

if __name__ == "__main__":
    main()
