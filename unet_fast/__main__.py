"""`python -m unet_fast` is the `unet-fast` command."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
