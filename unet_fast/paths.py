"""Where the C API of an installed unet_fast is, for building programs in C and C++ against it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def include_dir() -> Path:
    """The folder of `unet_fast.h` and `unet_fast.hpp`, for `cc -I`."""
    return _PACKAGE / "include"


def library_dir() -> Path:
    """The folder of `libunet_fast.so`, for `cc -L` and `-Wl,-rpath`."""
    return _PACKAGE / "lib"
