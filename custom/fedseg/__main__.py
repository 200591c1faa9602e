"""``python -m fedseg`` is the ``fedseg`` command."""

import sys

from fedseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
