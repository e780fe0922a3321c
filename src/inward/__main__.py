"""`python -m inward`: the same as the command `inward` (accelerate launch -m inward train ...)."""

import sys

from inward.cli.main import main

sys.exit(main())
