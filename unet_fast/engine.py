"""`Engine`: opens an engine file and segments images with it.

engine = unet_fast.Engine("cells.unet")
mask = engine.segment(image)            # uint8, 0 or 255
probability = engine.probability(image) # float32 in [0, 1]
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import as_image_batch
from .engine_file import read_document
from .errors import EngineFileError, UnsupportedError

Tiling = Literal["fast", "exact", "resize", "none"]
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

#: How images that are not of the trained size are treated; the values are those of the C API.
TILINGS: dict[str, int] = {"fast": 0, "exact": 1, "resize": 2, "none": 3}

_LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is.  Sizes are in pixels.

    name           given when it was frozen.
    device         "cpu", "cpu-reference" or "cuda:N", and `device_reason`, why that was chosen.
    precision      "float32", "bf16" or "fp16": what the activations are computed in.
    cpu_isa        instruction set of the CPU kernels: "portable", "avx2", "avx512", "avx512_bf16" or "neon".
    threads        CPU threads.
    channels       of the image, 1..4.
    classes        channels of the probability; 1 is foreground against background.
    output         "sigmoid", "softmax" or "identity" (a regression: values, no mask).
    class_names    one per class, or ().
    palette        an (r, g, b) per class, or ().
    threshold      probability above which `segment` takes a pixel for foreground.
    tile           side of the images that the network was trained on.
    multiple, remainder, minimum
                   legal sides for tiling="none": n >= minimum and n % multiple == remainder.
    margin         what a network without padding takes off each side under tiling="none".
    halo           pixels of context that tiling="exact" gives to each tile; None: cannot be tiled exactly.
    ops            fused operations of one pass.
    """

    name: str
    device: str
    device_reason: str
    precision: str
    cpu_isa: str
    threads: int
    channels: int
    classes: int
    output: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    threshold: float
    tile: int
    multiple: int
    remainder: int
    minimum: int
    margin: int
    halo: int | None
    ops: int


class Engine:
    """A frozen U-Net, loaded and ready to run.

    source               path of an engine file, or its contents as bytes.
    device               "auto": a GPU where one can run this file, else the CPU.  "cpu", "cuda", "cuda:1", or
                         "cpu-reference": slow, obvious loops to compare with.
    threads              CPU threads; None: one per physical core that this process may use.
    precision            "auto": the fastest that the file allows on this machine.  "float32", "bf16", "fp16".
    allow_embedded_code  False: GPU code in the file is ignored, the engine runs on the CPU.  For files of strangers.
    cpu_isa              "auto", or the most that may be used of the CPU's instruction sets, for comparisons:
                         "portable", "avx2", "avx512", "avx512_bf16", "neon".

    `FileNotFoundError`, `PermissionError` and the like where the file cannot be read; `EngineFileError` where it is
    not an engine file, damaged or of a newer version; `UnsupportedError` where this machine or file lacks what was
    asked for; `ValueError` and `TypeError` for other arguments that are not described here; `MemoryError`.

    Any number of threads may use one engine at the same time; the GIL is released while it opens and while it
    computes.  It can be pickled: by its path where it was opened from one, else with its bytes; the copy opens
    with the same arguments.
    """

    def __init__(
        self,
        source: Source,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        allow_embedded_code: bool = True,
        cpu_isa: str = "auto",
    ) -> None:
        for argument, value in (("device", device), ("precision", precision), ("cpu_isa", cpu_isa)):
            if not isinstance(value, str):
                raise TypeError(f"{argument} must be a string, got {type(value).__name__}")
        if threads is not None:
            _check_positive_integer("threads", threads)
        path: bytes | None = None
        data: bytes | None = None
        self._source: str | bytes
        if isinstance(source, bytes | bytearray | memoryview):
            self._source = data = bytes(source)
        elif isinstance(source, str | os.PathLike):
            self._source = os.path.abspath(os.fspath(source))
            path = os.fsencode(self._source)
            with open(path, "rb"):
                pass  # raises the fitting subclass of OSError, with errno and file name
        else:
            raise TypeError(f"source must be a path or bytes, got {type(source).__name__}")
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "precision": precision,
            "allow_embedded_code": allow_embedded_code,
            "cpu_isa": cpu_isa,
        }
        self._native = _native.Engine(
            path=path,
            data=data,
            device=device,
            precision=precision,
            cpu_isa=cpu_isa,
            threads=threads or 0,
            refuse_embedded_code=not allow_embedded_code,
        )
        class_names, palette = _class_names_and_palette(self._source)
        self.info = EngineInfo(class_names=class_names, palette=palette, **self._native.info())

    def segment(
        self,
        image: Any,
        *,
        tiling: Tiling = "fast",
        threshold: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        max_value: float | None = None,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """The mask of an image or of each image of a batch.

        image      of an engine for C > 1 channels: (H, W, C) or (N, H, W, C).  For one channel: (H, W), (H, W, 1),
                   (N, H, W) or (N, H, W, 1); a 3-D array whose last axis is 2, 3 or 4 is refused as a colour image.
                   uint8, uint16, or float32 (0 is black, 1 white); a NumPy array of any strides, a Pillow image
                   (converted to the engine's channels), or what offers DLPack or `__array_interface__` on the CPU.
                   Float values need not lie in [0, 1], but must be finite.
        tiling     what to do with other sizes than the trained one (`info.tile`):
                   "fast": overlapping tiles of the trained size, probabilities blended.
                   "exact": larger tiles with a halo; equals the whole image in one pass.
                   "resize": the image is resized to the trained size and the result back.
                   "none": one pass; the sides must be legal (`info.multiple`), a network without padding returns
                   its smaller size.
        threshold  probability in (0, 1) above which a pixel is foreground; None: the file's.  One class only.
        tile       side of a tile; None: the trained size ("fast"), up to 1024 ("exact").
        overlap    pixels, at least 1, that neighbouring tiles share ("fast"); None: an eighth of the tile.
        max_value  what counts as white; None: 255, 65535 or 1.0 by dtype.  4095 for a 12-bit camera.
        out        a uint8 array of the result's shape to write to; rows must be contiguous.

        Returns uint8 of the leading shape of `image`, without the channels, (H, W) or (N, H, W): for one class 0 and
        255, for several the index of the likeliest.  Each mask of a batch equals what its image gives alone, bit for
        bit.

        `ValueError` for a wrong shape, size or pixel value, `TypeError` for a wrong type or dtype, `UnsupportedError`
        where a network of this kind has no such result.
        """
        if self.info.output == "identity":
            raise UnsupportedError(
                f"{self.info.name!r} is a regression, it has values and no mask; call probability() instead"
            )
        limit = 0.0 if threshold is None else _as_float("threshold", threshold)  # 0 is the C API's default
        if threshold is not None and not 0 < limit < 1:
            raise ValueError(f"threshold must be between 0 and 1, both excluded, got {threshold!r}")
        return self._run(image, np.dtype(np.uint8), tiling, limit, tile, overlap, max_value, out)

    def probability(
        self,
        image: Any,
        *,
        tiling: Tiling = "fast",
        tile: int | None = None,
        overlap: int | None = None,
        max_value: float | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Like `segment`, but the float32 probability: (H, W) or (N, H, W), with a last axis for the classes where
        there is more than one.  Of a regression, its values.
        """
        return self._run(image, np.dtype(np.float32), tiling, 0.0, tile, overlap, max_value, out)

    def output_size(
        self,
        height: int,
        width: int,
        *,
        tiling: Tiling = "fast",
        tile: int | None = None,
        overlap: int | None = None,
    ) -> tuple[int, int]:
        """(height, width) of the result for an image of `height` x `width`; the image's own, except for
        tiling="none" of a network without padding.  `ValueError` for a size that is not accepted.
        """
        _check_positive_integer("height", height)
        _check_positive_integer("width", width)
        return self._native.output_size(height, width, *_tiling_arguments(tiling, tile, overlap))

    def _run(
        self,
        image: Any,
        dtype: np.dtype[Any],
        tiling: str,
        threshold: float,
        tile: int | None,
        overlap: int | None,
        max_value: float | None,
        out: NDArray[Any] | None,
    ) -> NDArray[Any]:
        tiling_arguments = _tiling_arguments(tiling, tile, overlap)
        white = 0.0 if max_value is None else _as_float("max_value", max_value)  # 0 is the C API's default
        if max_value is not None and not 0 < white < math.inf:
            raise ValueError(f"max_value must be positive and finite, got {max_value!r}")
        batch, was_batch = as_image_batch(image, self.info.channels)
        count, height, width, _ = batch.shape
        if max(batch.shape) > _LARGEST_INT32:
            raise ValueError(f"image axes must have at most {_LARGEST_INT32} elements, got shape {batch.shape}")
        size = self._native.output_size(height, width, *tiling_arguments)
        classes = (self.info.classes,) if dtype == np.float32 and self.info.classes > 1 else ()
        shape = (count, *size, *classes) if was_batch else (*size, *classes)
        if out is None:
            out = np.empty(shape, dtype)
        else:
            _check_out(out, shape, dtype, len(classes), batch)
        mode, tile_side, tile_overlap = tiling_arguments
        self._native.segment(
            batch,
            out if was_batch else out[None],
            max_value=white,
            tiling=mode,
            tile=tile_side,
            overlap=tile_overlap,
            threshold=threshold,
        )
        return out

    @property
    def source(self) -> str | bytes:
        """The engine file: its absolute path, or its contents if it was opened from bytes."""
        return self._source

    @property
    def device(self) -> str:
        """Where the engine runs: "cpu", "cpu-reference" or "cuda:N"."""
        return self.info.device

    @property
    def device_reason(self) -> str:
        """Why that device was chosen, one sentence."""
        return self.info.device_reason

    @property
    def precision(self) -> str:
        """ "float32", "bf16" or "fp16"."""
        return self.info.precision

    @property
    def cpu_isa(self) -> str:
        """Instruction set of the CPU kernels."""
        return self.info.cpu_isa

    @property
    def threads(self) -> int:
        """CPU threads."""
        return self.info.threads

    @property
    def channels(self) -> int:
        """Channels of the image, 1..4."""
        return self.info.channels

    @property
    def classes(self) -> int:
        """Channels of the probability."""
        return self.info.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or ()."""
        return self.info.class_names

    @property
    def tile(self) -> int:
        """Side in pixels of the images that the network was trained on."""
        return self.info.tile

    @property
    def halo(self) -> int | None:
        """Pixels of context for tiling="exact"; None: this network cannot be tiled exactly."""
        return self.info.halo

    def __repr__(self) -> str:
        info = self.info
        unit = "channel" if info.channels == 1 else "channels"
        result = "values" if info.output == "identity" else "class" if info.classes == 1 else "classes"
        device = info.device if info.device.startswith("cuda") else f"{info.device} ({info.cpu_isa}) x{info.threads}"
        return (
            f"<Engine {info.name!r}: {info.tile}x{info.tile}, {info.channels} {unit} -> "
            f"{info.classes} {result}, {info.precision} on {device}>"
        )

    def __reduce__(self) -> tuple[Callable[..., Engine], tuple[Any, ...]]:
        return _reopen, (self._source, self._options)


def _reopen(source: str | bytes, options: dict[str, Any]) -> Engine:
    return Engine(source, **options)


def _class_names_and_palette(source: str | bytes) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The two things in an engine file that are for people only, so that the runtime does not report them."""
    output = read_document(source)["output"]
    try:
        names = tuple(str(name) for name in output["class_names"])
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in output["palette"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EngineFileError(f"engine file: malformed class names or palette: {error!r}") from None
    return names, palette


def _tiling_arguments(tiling: str, tile: int | None, overlap: int | None) -> tuple[int, int, int]:
    """The three as the C API takes them, where 0 is the default."""
    if tiling not in TILINGS:
        raise ValueError(f"tiling must be one of {', '.join(TILINGS)}, got {tiling!r}")
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None:
            _check_positive_integer(name, value)
    return TILINGS[tiling], tile or 0, overlap or 0


def _check_positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 1 <= value <= _LARGEST_INT32:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _as_float(name: str, value: SupportsFloat) -> float:
    """`value` rounded to float32, the type of the C API."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(float(value)))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], class_axes: int, batch: NDArray[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    row = out[(0,) * (out.ndim - 1 - class_axes)]
    if not row.flags.c_contiguous or not out.flags.aligned or any(stride < 0 for stride in out.strides):
        raise ValueError(f"out must have contiguous rows and no negative strides, its strides are {out.strides}")
    if np.may_share_memory(out, batch):
        raise ValueError("out shares memory with image; the result is written while the image is still read")
