"""An engine through the C API, by way of native.c, for what Python cannot time or reach."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import native
from bench.workloads import Array
from unet_fast import Engine


class _Options(ctypes.Structure):
    """`uf_options` of unet_fast.h."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
        ("cpu_isa", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("refuse_embedded_code", ctypes.c_int32),
    )


class CEngine:
    """The same file, device, precision and threads as `like`, with a context for images of `shape` (N, h, w, channels).

    Pixels and masks are uint8 and given by address: on the host or, with `on_device`, in the memory of the GPU.
    """

    def __init__(self, like: Engine, shape: tuple[int, ...], *, on_device: bool = False) -> None:
        self._library = native().library
        self._library.c_engine_bytes.restype = ctypes.c_size_t
        self._engine = ctypes.create_string_buffer(self._library.c_engine_bytes())
        names = (name.encode() for name in (like.device, like.precision, like.cpu_isa))
        options = _Options(ctypes.sizeof(_Options), *names, like.threads, 0)
        message = ctypes.create_string_buffer(1000)
        status = self._library.c_open(
            self._engine,
            _loaded_runtime().encode(),
            str(like.source).encode(),
            ctypes.byref(options),
            int(on_device),
            *shape,
            message,
            ctypes.c_size_t(len(message)),
        )
        if status != 0:
            raise RuntimeError(message.value.decode())

    def __enter__(self) -> CEngine:
        return self

    def __exit__(self, *_: Any) -> None:
        self._library.c_close(self._engine)

    def enqueue(self, pixels: int, mask: int, stream: int = 0, passes: int = 1) -> None:
        """`uf_enqueue`, `passes` times, on a CUDA stream (0: that of the context, and then it waits)."""
        pointers = (ctypes.c_void_p(address) for address in (pixels, mask, stream))
        self._check(self._library.c_enqueue(self._engine, *pointers, passes))

    def time_calls(self, pixels: int, mask: int, rounds: int) -> tuple[Array, Array]:
        """Seconds of `rounds` calls of `uf_segment` and of `uf_enqueue`, in turns, timed in C."""
        seconds = np.zeros((2, rounds))
        rows = (ctypes.c_void_p(row.ctypes.data) for row in seconds)
        arguments = (ctypes.c_void_p(pixels), ctypes.c_void_p(mask), rounds, *rows)
        self._check(self._library.c_time_calls(self._engine, *arguments))
        return seconds[0], seconds[1]

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"the C API returned status {status}")


def _loaded_runtime() -> str:
    """Path of the libunet_fast.so that this process runs."""
    maps = Path("/proc/self/maps").read_text()
    return next(word for word in maps.split() if "/libunet_fast.so" in word)
