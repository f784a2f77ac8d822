"""`python -m flower_dhb.cli` is `flower-dhb`."""

import sys

from flower_dhb.cli import main

sys.exit(main())
