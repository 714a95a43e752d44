"""The command `python -m embspace_helpers.cost`."""

from embspace_helpers.workshop.cost import main

if __name__ == "__main__":
    raise SystemExit(main())
