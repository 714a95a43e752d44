"""The command `python -m embspace_helpers.finetuning`."""

from embspace_helpers.workshop.finetune import main

if __name__ == "__main__":
    main()
