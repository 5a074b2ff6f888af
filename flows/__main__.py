"""`python -m flows <command>`: what `ovis-dag <command>` does, by the code of this folder."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
