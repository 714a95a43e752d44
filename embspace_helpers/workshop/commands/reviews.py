"""The command `python -m embspace_helpers.reviews`."""

from embspace_helpers.classroom.reviews import main

if __name__ == "__main__":
    main()
