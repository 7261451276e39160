"""``python -m vinb``: the command line of `vinb.cli`."""

import sys

from vinb.cli import main

if __name__ == "__main__":
    sys.exit(main())
