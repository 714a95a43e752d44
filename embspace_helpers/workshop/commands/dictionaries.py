"""The command `python -m embspace_helpers.dictionaries`."""

from embspace_helpers.workshop.measure_dictionaries import main

if __name__ == "__main__":
    main()
