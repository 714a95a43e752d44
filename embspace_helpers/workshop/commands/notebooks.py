"""The command `python -m embspace_helpers.notebooks`."""

from embspace_helpers.workshop.notebooks import main

if __name__ == "__main__":
    raise SystemExit(main())
