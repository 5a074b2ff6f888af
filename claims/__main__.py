"""`python -m claims [SEEDS]`: what `ovis-dag claims` does, by the code of this folder."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main(["claims", *sys.argv[1:]]))
