"""The exceptions that have no exact match among Python's own.

A wrong argument raises `ValueError` or `TypeError`, a file that cannot be read `OSError`, too little memory
`MemoryError`; the rest is here.
"""

from __future__ import annotations


class EngineFileError(ValueError):
    """Not an engine file, a damaged one, or one written by a newer unet_fast."""


class UnsupportedError(RuntimeError):
    """This machine or this engine file lacks what was asked for: a device, an instruction set, a precision."""


class DeviceError(RuntimeError):
    """A call to the GPU driver failed, or the GPU is gone."""
