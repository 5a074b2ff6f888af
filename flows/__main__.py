"""`python -m flows <command>`: the same as `ovis-dag <command>`, with the code of this folder."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
