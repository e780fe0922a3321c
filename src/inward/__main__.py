"""`python -m inward`: the same as the command `inward` (accelerate launch -m inward train ...)."""

import sys

from inward.cli import main

sys.exit(main())
