"""`python -m kimi_vl_cpp`: the same as the command `kimi-vl`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
