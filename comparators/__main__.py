"""`python -m comparators rpn`: run a comparator's stage, guarded as `python -m stages` does."""

from stages.__main__ import main

if __name__ == "__main__":
    main("comparators")
