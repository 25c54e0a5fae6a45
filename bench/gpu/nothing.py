"""A kernel that does nothing; in a file of its own, since importing triton needs a machine that has it."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton


@triton.jit
def nothing():
    pass
