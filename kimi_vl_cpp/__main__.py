"""`python -m kimi_vl_cpp`: the same as the command `kimi-vl`."""

import sys

if __name__ == "__main__":
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
