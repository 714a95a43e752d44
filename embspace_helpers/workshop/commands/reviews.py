"""The command `python -m embspace_helpers.reviews`."""

from embspace_helpers.workshop.review_difficulty import main

if __name__ == "__main__":
    main()
