"""Kernels that do nothing; in a file of its own, since importing triton needs a machine that has it."""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def nothing():
    pass


@triton.jit
def wait():
    """As the kernels of a pass begin: the next may start, this one waits for the one before."""
    gdc_launch_dependents()
    gdc_wait()
