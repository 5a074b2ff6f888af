"""`python -m claims [SEEDS]`: the same as `ovis-dag claims`, with the code of this folder."""

import sys

from flows.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["claims", *sys.argv[1:]]))
