"""``python -m fedseg`` is the ``fedseg`` command."""

import sys

from fedseg.cli import main

sys.exit(main())
