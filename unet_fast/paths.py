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


def cmake_dir() -> Path:
    """The folder of the CMake package, for `cmake -Dunet_fast_DIR=...` and then `find_package(unet_fast CONFIG)`."""
    return library_dir() / "cmake" / "unet_fast"


def pkgconfig_dir() -> Path:
    """The folder of `unet_fast.pc`, for `PKG_CONFIG_PATH`."""
    return library_dir() / "pkgconfig"
