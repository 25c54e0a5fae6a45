"""The exceptions that have no exact match among Python's own.

A wrong argument raises `ValueError` or `TypeError`, a file that cannot be read `OSError`, too little memory
`MemoryError`; the rest is here.
"""

from __future__ import annotations

import os


class EngineFileError(ValueError):
    """Not an engine file, a damaged one, or one written by a newer unet_fast."""


class UnsupportedError(RuntimeError):
    """This machine or this engine file lacks what was asked for: a device, an instruction set, a precision."""


class DeviceError(RuntimeError):
    """A call to the GPU driver failed, or the GPU is gone."""


def in_one_line(error: Exception) -> str:
    """What went wrong, as one line for a person."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    return text or type(error).__name__
