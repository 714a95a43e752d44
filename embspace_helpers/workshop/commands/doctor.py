"""The command `python -m embspace_helpers.doctor`."""

from embspace_helpers.workshop.doctor import main

if __name__ == "__main__":
    raise SystemExit(main())
