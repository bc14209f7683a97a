"""`python -m omnimamba_cli` is the command `omnimamba`."""

import sys

from omnimamba_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
