"""`python -m comparators rpn`: run a comparator's stage with the guards of `python -m stages`."""

from stages.__main__ import main

if __name__ == "__main__":
    main("comparators")
