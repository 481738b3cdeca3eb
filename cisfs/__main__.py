"""`python -m cisfs`: the same as the `cisfs` command.  Knows nothing else; runs once."""

import sys

from cisfs.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
