"""The command `python -m embspace_helpers.machines`."""

from embspace_helpers.workshop.machines import main

if __name__ == "__main__":
    raise SystemExit(main())
