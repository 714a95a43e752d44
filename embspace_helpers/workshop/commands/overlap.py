"""The command `python -m embspace_helpers.overlap`."""

from embspace_helpers.experiments.overlap import main

if __name__ == "__main__":
    main()
