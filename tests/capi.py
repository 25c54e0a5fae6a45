"""The C API by ctypes, for what `Engine` does not offer: contexts, streams, device memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import unet_fast

LIBRARY = Path(unet_fast.__file__).parent / "lib" / "libunet_fast.so"

INVALID_ARGUMENT, BAD_FILE, UNSUPPORTED, OUT_OF_MEMORY, DEVICE, DEVICE_LOST = 1, 3, 5, 6, 8, 9
STRIDE_ZERO = -(2**63)
DTYPES = {"uint8": 1, "uint16": 2, "float32": 3}
HOST, CUDA = 0, 1


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("device", ctypes.c_char_p), ("precision", ctypes.c_char_p),
        ("cpu_isa", ctypes.c_char_p), ("threads", ctypes.c_int32), ("refuse_embedded_code", ctypes.c_int32),
        ("thread_affinity", ctypes.c_char_p), ("thread_priority", ctypes.c_int64),
        ("keep_warm_ms", ctypes.c_int64),
    )  # fmt: skip


class Image(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("data", ctypes.c_void_p), ("dtype", ctypes.c_int32),
        ("memory", ctypes.c_int32), ("count", ctypes.c_int32), ("height", ctypes.c_int32), ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32), ("image_stride_bytes", ctypes.c_int64), ("row_stride_bytes", ctypes.c_int64),
        ("pixel_stride_bytes", ctypes.c_int64), ("channel_stride_bytes", ctypes.c_int64),
        ("max_value", ctypes.c_float), ("size_bytes", ctypes.c_size_t),
    )  # fmt: skip


class Output(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("data", ctypes.c_void_p), ("dtype", ctypes.c_int32),
        ("memory", ctypes.c_int32), ("image_stride_bytes", ctypes.c_int64), ("row_stride_bytes", ctypes.c_int64),
        ("size_bytes", ctypes.c_size_t),
    )  # fmt: skip


class RunOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("tiling", ctypes.c_int32), ("tile", ctypes.c_int32),
        ("overlap", ctypes.c_int32), ("threshold", ctypes.c_float),
    )  # fmt: skip


class OpTime(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("kernel", ctypes.c_char_p),
        ("seconds", ctypes.c_double),
    )  # fmt: skip


class WholeProfile(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("pass_seconds", ctypes.c_double), ("bytes_per_second", ctypes.c_double),
        ("operations_per_second", ctypes.c_double), ("operations_measured", ctypes.c_int32),
    )  # fmt: skip


class StatusError(Exception):
    """A status that is not UF_OK, with the library's message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class Api:
    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.uf_last_error.restype = ctypes.c_char_p
        self.library.uf_enqueue.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(Image), ctypes.c_float, ctypes.POINTER(Output), ctypes.c_void_p
        ]  # fmt: skip

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise StatusError(status, self.library.uf_last_error().decode())

    @contextmanager
    def engine(self, path: Path, **options: Any) -> Iterator[ctypes.c_void_p]:
        encoded = {key: value.encode() if isinstance(value, str) else value for key, value in options.items()}
        engine = ctypes.c_void_p()
        settings = Options(struct_size=ctypes.sizeof(Options), **encoded)
        self.call("uf_engine_open", str(path).encode(), ctypes.byref(settings), ctypes.byref(engine))
        try:
            yield engine
        finally:
            self.library.uf_engine_close(engine)

    @contextmanager
    def context(self, engine: ctypes.c_void_p, count: int = 1, height: int = 0, width: int = 0) -> Iterator[Any]:
        context = ctypes.c_void_p()
        self.call("uf_context_create", engine, count, height, width, ctypes.byref(context))
        try:
            yield context
        finally:
            self.library.uf_context_destroy(context)

    def enqueue(self, context: Any, image: Image, output: Output, stream: int = 0, threshold: float = 0.0) -> None:
        self.call("uf_enqueue", context, image, threshold, output, stream or None)

    def describe(self, data: int, encoding: str, height: int, width: int, row_stride_bytes: int = 0) -> Image:
        image = Image(struct_size=ctypes.sizeof(Image))
        where, stride = ctypes.c_void_p(data), ctypes.c_int64(row_stride_bytes)
        self.call("uf_image_describe", ctypes.byref(image), where, encoding.encode(), height, width, stride)
        return image

    def segment(self, engine: Any, image: Image, output: Output, tiling: int = 0, tile: int = 0) -> None:
        options = RunOptions(struct_size=ctypes.sizeof(RunOptions), tiling=tiling, tile=tile)
        self.call("uf_segment", engine, ctypes.byref(image), ctypes.byref(options), ctypes.byref(output))


def image_of(pixels: np.ndarray[Any, Any], data: int | None = None, **fields: Any) -> Image:
    """An (N, H, W, C) array with its strides; `data`: the address of a copy in device memory with the same strides."""
    count, height, width, channels = pixels.shape
    names = ("image_stride_bytes", "row_stride_bytes", "pixel_stride_bytes", "channel_stride_bytes")
    values = dict(zip(names, pixels.strides, strict=True)) | fields
    return Image(
        struct_size=ctypes.sizeof(Image), data=pixels.ctypes.data if data is None else data,
        dtype=DTYPES[str(pixels.dtype)], memory=HOST if data is None else CUDA, count=count, height=height,
        width=width, channels=channels, **values,
    )  # fmt: skip


def output_in(result: np.ndarray[Any, Any], data: int | None = None) -> Output:
    """A mask (N, h, w) or a probability (N, h, w, K), likewise."""
    return Output(
        struct_size=ctypes.sizeof(Output), data=result.ctypes.data if data is None else data,
        dtype=DTYPES[str(result.dtype)], memory=HOST if data is None else CUDA,
        image_stride_bytes=result.strides[0], row_stride_bytes=result.strides[1],
    )  # fmt: skip
