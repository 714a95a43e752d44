"""The command `python -m embspace_helpers.binder_memory`."""

from embspace_helpers.workshop.binder_memory import main

if __name__ == "__main__":
    raise SystemExit(main())
