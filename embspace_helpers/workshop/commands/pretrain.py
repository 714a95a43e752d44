"""The command `python -m embspace_helpers.pretrain`."""

from embspace_helpers.workshop.pretrain import main

if __name__ == "__main__":
    main()
