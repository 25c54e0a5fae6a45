"""What callers hand in as an image, as a NumPy view (N, H, W, C) that the runtime can read in place; and as `out`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NATIVE_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
_DTYPE_HINTS = {
    "b": ".astype(np.uint8) * 255",
    "i": ".astype(np.uint16), if the values fit",
    "u": ".astype(np.uint16), if the values fit",
    "f": ".astype(np.float32)",
}
_MOST_CHANNELS = 4
_DLPACK_HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost: both addressable by the CPU


def as_image_batch(image: Any, channels: int) -> tuple[NDArray[Any], bool]:
    """`image` as an (N, H, W, channels) array and whether it was a batch.

    NumPy arrays and CPU arrays of other libraries are viewed, not copied; only a broadcast axis (stride 0) or memory
    that is not aligned to its type needs a copy.  A Pillow image is converted to `channels`.

    `TypeError` for what is no image or has a wrong dtype, `ValueError` for a wrong shape.
    """
    array = _as_array(image, channels)
    check_dtype(array.dtype)
    index, was_batch = batch_index(array.shape, channels)
    batch = array[index]
    is_broadcast = any(size > 1 and stride == 0 for size, stride in zip(batch.shape, batch.strides, strict=True))
    if is_broadcast or not batch.flags.aligned:
        batch = np.array(batch, order="C")
    return batch, was_batch


def _as_array(image: Any, channels: int) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    # Pillow is not imported for this: an image of it exists only where it already is.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _from_pillow(image, channels)
    if hasattr(image, "__dlpack__") and hasattr(image, "__dlpack_device__"):
        kind = int(image.__dlpack_device__()[0])
        if kind not in _DLPACK_HOST_DEVICES:
            raise TypeError(f"image is in the memory of a device (DLPack kind {kind}); copy it with .cpu()")
        try:
            return np.from_dlpack(image)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"image ({type(image).__name__}) cannot be shared over DLPack: {error}") from error
    if any(hasattr(image, name) for name in ("__array_interface__", "__array_struct__", "__array__")):
        return np.asarray(image)
    raise TypeError(
        f"image must be a NumPy array, a Pillow image or offer DLPack or an array interface, got {type(image).__name__}"
    )


def _from_pillow(image: Any, channels: int) -> NDArray[Any]:
    from .images import ImageError, to_channels

    if image.mode == "1":
        image = image.convert("L")
    elif image.mode == "LA":
        image = image.getchannel("L")
    elif image.mode not in ("L", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "F"):
        if image.mode == "I":
            raise TypeError('image has mode "I" (32-bit integers); pass np.asarray(image).astype(np.uint16)')
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype.byteorder == ">":
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    try:
        return to_channels(pixels, channels)
    except ImageError as error:
        raise ValueError(f"image of mode {image.mode!r} for a network of {channels} channels: {error}") from None


def check_dtype(dtype: np.dtype[Any]) -> None:
    """`TypeError`, with a way to convert, for a dtype that the runtime does not read."""
    if dtype in _NATIVE_DTYPES:
        return
    message = f"image dtype must be uint8, uint16 or float32, got {dtype}"
    if dtype.newbyteorder("=") in _NATIVE_DTYPES:
        raise TypeError(f"{message} in foreign byte order; convert with image.astype(np.{dtype.newbyteorder('=')})")
    if dtype.kind in _DTYPE_HINTS:
        raise TypeError(f"{message}; convert with image{_DTYPE_HINTS[dtype.kind]}")
    raise TypeError(message)


def dtype_named(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        raise TypeError(f"image dtype must be uint8, uint16 or float32, got {name}") from None


def batch_index(shape: tuple[int, ...], channels: int) -> tuple[tuple[slice | None, ...], bool]:
    """The index that makes an image or batch of this shape (N, H, W, channels), and whether it is a batch.

    Only whole axes and new ones (None).  `ValueError` for a wrong or empty shape.
    """
    every = slice(None)
    if 0 in shape:
        raise ValueError(f"image is empty, its shape is {shape}")
    if channels == 1:
        if len(shape) == 2:
            return (None, every, every, None), False
        if len(shape) == 3 and shape[2] == 1:
            return (None, every, every, every), False
        if len(shape) == 3 and shape[2] > _MOST_CHANNELS:
            return (every, every, every, None), True
        accepted = "(H, W), (H, W, 1), (N, H, W) with W > 4, or (N, H, W, 1)"
    else:
        if len(shape) == 3 and shape[2] == channels:
            return (None, every, every, every), False
        accepted = f"(H, W, {channels}) or (N, H, W, {channels})"
    if len(shape) == 4 and shape[3] == channels:
        return (every, every, every, every), True
    hint = ""
    if len(shape) in (3, 4) and shape[-3] == channels:
        hint = "; if channels come first, pass np.moveaxis(image, -3, -1)"
    elif len(shape) == 2 or (len(shape) == 3 and shape[2] <= _MOST_CHANNELS):
        hint = f"; unet_fast.images.to_channels(image, {channels}) turns grey into colour and back"
    raise ValueError(f"image must have the shape {accepted} for this network ({channels=}), got {shape}{hint}")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], class_axes: int, batch: NDArray[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, as image is in host memory, got {type(out).__name__}")
    check_result(str(out.dtype), out.shape, out.strides, not out.flags.writeable, shape, dtype, class_axes)
    if not out.flags.aligned:
        raise ValueError("out must be aligned to its dtype")
    if np.may_share_memory(out, batch):
        raise ValueError("out shares memory with image; the result is written while the image is still read")


def check_result(
    given_dtype: str,
    given: tuple[int, ...],
    strides: tuple[int, ...],
    read_only: bool,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    class_axes: int,
) -> None:
    """An array `out` with its strides in bytes against what is to be written, `shape` with 0 or 1 axes for classes."""
    if given_dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {given_dtype}")
    if given != shape:
        raise ValueError(f"out must have shape {shape}, got {given}")
    if read_only:
        raise ValueError("out is read-only")
    # A row is the width and, if there is one, the axis of the classes.
    row, tight = True, dtype.itemsize
    for size, stride in list(zip(shape, strides, strict=True))[: -2 - class_axes : -1]:
        row = row and (size == 1 or stride == tight)
        tight *= size
    if not row or any(stride < 0 for stride in strides):
        raise ValueError(f"out must have contiguous rows and no negative strides, its strides are {strides}")
