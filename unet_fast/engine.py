"""`Engine`: opens an engine file and segments images with it.

engine = unet_fast.Engine("cells.unet")
mask = engine.segment(image)            # uint8, 0 or 255
probability = engine.probability(image) # float32 in [0, 1]
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import numpy as np

from . import _native
from .arrays import as_image_batch, batch_index, check_dtype, check_out, dtype_named
from .cuda_arrays import (
    LEGACY_STREAM,
    CudaArray,
    Passes,
    View,
    check_strides,
    is_cuda_array,
    stream_handle,
    view_of,
    view_of_out,
)
from .engine_file import read_document
from .errors import EngineFileError, UnsupportedError
from .several_gpus import ALL_GPUS, SeveralGpus

if TYPE_CHECKING:
    from .profile import Profile
    from .tune import Tuning

Tiling = Literal["fast", "exact", "resize", "none"]
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

#: How images that are not of the trained size are treated; the values are those of the C API.
TILINGS: dict[str, int] = {"fast": 0, "exact": 1, "resize": 2, "none": 3}

_LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is.  Sizes are in pixels.

    name           given when it was frozen.
    device         "cpu", "cpu-reference", "cuda:N" or, of several GPUs, "cuda:N,M", and `device_reason`, why that was
                   chosen.
    precision      "float32", "bf16", "fp16" or "int8": what the activations are computed in; on a CPU with "fp16", what
                   is multiplied.
    cpu_isa        instruction set of the CPU kernels: "portable", "avx2", "avx512", "avx512_bf16", "neon", "neon_fp16"
                   or "neon_bf16"; in int8 also "avx2_vnni", "avx512_vnni", "neon_dotprod" and "neon_i8mm", which
                   `Engine` allows as "avx512", "avx512_bf16", "neon_fp16" and "neon_bf16".
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
    tuning         on a GPU which kernels run and where that was measured, one sentence, which also names tuning files
                   that could not be used and why; "" on a CPU.
    tuning_file    the file with these measurements; "" for the engine file's own order of kernels.
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
    tuning: str
    tuning_file: str


@dataclass(frozen=True)
class Tiles:
    """The tiles of exact tiling along one axis, in pixels.

    side   of the image that each tile sees, mirrored where it reaches beyond.
    spans  (origin, begin, end) of each: it sees from `origin` - `info.margin`, and gives the result from `begin` to
           `end`, the latter excluded.
    """

    side: int
    spans: list[tuple[int, int, int]]


class Engine:
    """A frozen U-Net, loaded and ready to run.

    source               path of an engine file, or its contents as bytes.
    device               "auto": a GPU where one can run this file, else the CPU.  "cpu", "cuda", "cuda:1", or
                         "cpu-reference": slow, obvious loops to compare with.  "cuda:all": every GPU that can run this
                         file; the images of a batch are spread over them, calls with one image go to the idlest, and
                         what a GPU that is lost leaves undone the others do.  For images in host memory.  GPUs of
                         different models may differ by a few roundings.
    threads              CPU threads; None: one per physical core that this process may use.
    precision            "auto": the fastest that the file allows on this machine.  "float32".  "bf16": GPUs, and CPUs
                         with AVX-512 BF16 or Arm's BF16.  "fp16": GPUs, and CPUs with Arm's FP16.  "int8": the CPU, for
                         files frozen so, and no other precision runs those.
    allow_embedded_code  False: GPU code in the file is ignored, the engine runs on the CPU.  For files of strangers.
    cpu_isa              "auto", or the most that may be used of the CPU's instruction sets, for comparisons:
                         "portable", "avx2", "avx512", "avx512_bf16", "neon", "neon_fp16", "neon_bf16".
    keep_warm            seconds, 0.001 to 60, rounded to milliseconds: after each pause of that length between calls a
                         thread runs a pass over a black image on the CPU, so that a call after the pause is as fast as
                         one after another.  0.05 suits a camera.  0: nothing is done in pauses, and no power is used.

    `FileNotFoundError`, `PermissionError` and the like where the file cannot be read; `EngineFileError` where it is
    not an engine file, damaged or of a newer version; `UnsupportedError` where this machine or file lacks what was
    asked for; `ValueError` and `TypeError` for other arguments that are not described here; `MemoryError`.

    Any number of threads may use one engine at the same time; the GIL is released while it opens and while it
    computes.  It can be pickled: by its path where it was opened from one, else with its bytes; the copy opens
    with the same arguments.  Nothing needs to be closed: when the last reference to an engine is dropped, its memory,
    threads and what it has on a GPU are freed.
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
        keep_warm: float = 0.0,
    ) -> None:
        for argument, value in (("device", device), ("precision", precision), ("cpu_isa", cpu_isa)):
            if not isinstance(value, str):
                raise TypeError(f"{argument} must be a string, got {type(value).__name__}")
        if threads is not None:
            _check_positive_integer("threads", threads)
        pause = _as_float("keep_warm", keep_warm)
        if pause != 0 and not 0.001 <= pause <= 60:
            raise ValueError(f"keep_warm must be 0 or a pause of 0.001 to 60 seconds, got {keep_warm!r}")
        path: bytes | None = None
        data: bytes | None = None
        self._source: str | bytes
        if isinstance(source, bytes | bytearray | memoryview):
            self._source = data = bytes(source)
        elif isinstance(source, str | os.PathLike):
            name = os.fsdecode(source)
            self._source = os.path.abspath(name)
            path = os.fsencode(self._source)
            with open(name, "rb"):
                pass  # raises the fitting subclass of OSError, with errno and file name
        else:
            raise TypeError(f"source must be a path or bytes, got {type(source).__name__}")
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "precision": precision,
            "allow_embedded_code": allow_embedded_code,
            "cpu_isa": cpu_isa,
            "keep_warm": keep_warm,
        }

        def open_on(device: str) -> _native.Engine:
            return _native.Engine(
                path=path,
                data=data,
                device=device,
                precision=precision,
                cpu_isa=cpu_isa,
                threads=threads or 0,
                refuse_embedded_code=not allow_embedded_code,
                keep_warm_ms=round(1000 * pause),
            )

        self._native = SeveralGpus(open_on) if device == ALL_GPUS else open_on(device)
        document = read_document(self._source)
        class_names, palette = _class_names_and_palette(document)
        self._standardises = document["input"]["normalisation"]["kind"] == "standardise"
        self._passes: Passes | None = None
        self._info = EngineInfo(class_names=class_names, palette=palette, **self._native.info())

    def segment(
        self,
        image: Any,
        *,
        tiling: Tiling = "fast",
        threshold: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        max_value: float | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """The mask of an image or of each image of a batch.

        image      of an engine for C > 1 channels: (H, W, C) or (N, H, W, C).  For one channel: (H, W), (H, W, 1),
                   (N, H, W) or (N, H, W, 1); a 3-D array whose last axis is 2, 3 or 4 is refused as a colour image.
                   uint8, uint16, or float32 (0 is black, 1 white); a NumPy array of any strides, a Pillow image
                   (converted to the engine's channels), or what offers DLPack or `__array_interface__` on the CPU.
                   Float values need not lie in [0, 1], but must be finite.
                   For an engine on a GPU also an array in that GPU's memory: what offers DLPack or
                   `__cuda_array_interface__`, as tensors of PyTorch and arrays of CuPy do; its values are not checked.
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
        out        a uint8 array of the result's shape to write to, in the same kind of memory as the image; its rows
                   must be contiguous.
        stream     for arrays in GPU memory: the CUDA stream to work on, as a stream object of PyTorch, CuPy or
                   cuda.core or the address of a CUstream (0 and 1: the legacy default stream).  The call comes after
                   what is on the stream and may return before it has run; image and `out` are kept until then and
                   may be changed by later work on that stream.  None: the call comes after work on the legacy
                   default stream and what the producers of the arrays have under way, and returns when it is done.
                   So it does on a stream, too, for an image that takes more than one pass (tiles, another size) and
                   for a network that standardises each image.

        Returns uint8 of the leading shape of `image`, without the channels, (H, W) or (N, H, W): for one class 0 and
        255, for several the index of the likeliest.  Each mask of a batch equals what its image gives alone, bit for
        bit.  `out` if given, else a NumPy array, or for an image in GPU memory a `CudaArray`.

        `ValueError` for a wrong shape, size or pixel value, memory of another GPU or a stream of another context,
        `TypeError` for a wrong type or dtype, `UnsupportedError` where a network of this kind has no such result.
        """
        limit = check_threshold(self.info, threshold)
        return self._run(image, np.dtype(np.uint8), tiling, limit, tile, overlap, max_value, out, stream)

    def probability(
        self,
        image: Any,
        *,
        tiling: Tiling = "fast",
        tile: int | None = None,
        overlap: int | None = None,
        max_value: float | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Like `segment`, but the float32 probability: (H, W) or (N, H, W), with a last axis for the classes where
        there is more than one.  Of a regression, its values.
        """
        return self._run(image, np.dtype(np.float32), tiling, 0.0, tile, overlap, max_value, out, stream)

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

    def exact_tiles(self, height: int, width: int, *, tile: int | None = None) -> tuple[Tiles, Tiles]:
        """The tiles of the rows and those of the columns of an image under tiling="exact" with that `tile`."""
        _check_positive_integer("height", height)
        _check_positive_integer("width", width)
        _, side, _ = _tiling_arguments("exact", tile, None)
        rows, columns = self._native.exact_tiles(height, width, side)
        return Tiles(*rows), Tiles(*columns)

    @property
    def standardises(self) -> bool:
        """Whether each image is brought to mean 0 and deviation 1 by statistics of the whole of it."""
        return self._standardises

    def _run(
        self,
        image: Any,
        dtype: np.dtype[Any],
        tiling: str,
        threshold: float,
        tile: int | None,
        overlap: int | None,
        max_value: float | None,
        out: Any,
        stream: Any,
    ) -> Any:
        options = _tiling_arguments(tiling, tile, overlap)
        white = check_max_value(max_value)
        handle = stream_handle(stream)
        if is_cuda_array(image):
            return self._run_on_gpu(image, dtype, options, threshold, white, out, handle)
        batch, was_batch = as_image_batch(image, self.info.channels)
        if handle is not None:
            raise ValueError("stream is for arrays in GPU memory, but image is in host memory")
        shape = self._result_shape(batch.shape, was_batch, dtype, options)
        if out is None:
            out = np.empty(shape, dtype)
        else:
            check_out(out, shape, dtype, self._class_axes(dtype), batch)
        mode, tile_side, tile_overlap = options
        self._native.segment(
            batch,
            out if was_batch else out[None],
            max_value=white,
            tiling=mode,
            tile=tile_side,
            overlap=tile_overlap,
            threshold=threshold,
        )
        if self._info.device.startswith("cuda:"):
            self._notice_lost_gpu()
        return out

    def _run_on_gpu(
        self,
        image: Any,
        dtype: np.dtype[Any],
        options: tuple[int, int, int],
        threshold: float,
        white: float,
        out: Any,
        stream: int | None,
    ) -> Any:
        """Like `_run`, for an image in GPU memory."""
        if not self.info.device.startswith("cuda:"):
            raise TypeError(f"image is in GPU memory, but this engine runs on {self.device}; copy it with .cpu()")
        if isinstance(self._native, SeveralGpus):
            raise TypeError(
                f'image is in GPU memory, device="{ALL_GPUS}" is for images in host memory; open an engine on its GPU'
            )
        ordinal = int(self.info.device.removeprefix("cuda:"))
        passes = self._passes
        if passes is None:
            passes = self._passes = Passes(self._native, ordinal)
        device = passes.device
        order = LEGACY_STREAM if stream is None else stream
        source = view_of(image, "image", ordinal, device, order)
        check_dtype(dtype_named(source.dtype))
        index, was_batch = batch_index(source.shape, self.info.channels)
        check_strides("image", source)
        shape = self._result_shape(source.indexed(index).shape, was_batch, dtype, options)
        if out is None:
            result = CudaArray(device, ordinal, shape, dtype)
            target = result.view()
        else:
            result = out
            target = view_of_out(out, shape, dtype, self._class_axes(dtype), source, ordinal, device, order)
        batch = source.indexed(index)
        if not was_batch:
            target = target.indexed((None, *[slice(None)] * len(shape)))
        if stream is not None and self._is_one_pass(batch, options):
            end = passes.run(batch, target, stream, max_value=white, threshold=threshold)
            if isinstance(result, CudaArray):
                result.comes_after(end)
            return result
        if stream is not None:
            device.synchronise(stream)
        mode, tile_side, tile_overlap = options
        self._native.segment(
            batch.pixels,
            target.pixels,
            max_value=white,
            tiling=mode,
            tile=tile_side,
            overlap=tile_overlap,
            threshold=threshold,
        )
        return result

    def _result_shape(
        self, batch: tuple[int, ...], was_batch: bool, dtype: np.dtype[Any], options: tuple[int, int, int]
    ) -> tuple[int, ...]:
        """Shape of the result for an image (N, H, W, C)."""
        if max(batch) > _LARGEST_INT32:
            raise ValueError(f"image axes must have at most {_LARGEST_INT32} elements, got shape {batch}")
        count, height, width, _ = batch
        size = self._native.output_size(height, width, *options)
        classes = (self.info.classes,) * self._class_axes(dtype)
        return (count, *size, *classes) if was_batch else (*size, *classes)

    def _class_axes(self, dtype: np.dtype[Any]) -> int:
        """Axes of a result behind its width, 0 or 1."""
        return int(dtype == np.float32 and self.info.classes > 1)

    def _is_one_pass(self, batch: View, options: tuple[int, int, int]) -> bool:
        """Whether `uf_enqueue` can do it: whole images of a legal size whose pixels the host need not see."""
        tiling, tile, _ = options
        if tiling == TILINGS["none"]:
            return not self._standardises
        info = self.info
        legal = all(n >= info.minimum and n % info.multiple == info.remainder for n in batch.shape[1:3])
        fits = tiling != TILINGS["resize"] and max(batch.shape[1:3]) <= (tile or info.tile)
        return legal and fits and info.margin == 0 and not self._standardises

    def tune(
        self,
        *,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        output: str | os.PathLike[str] | None = None,
    ) -> Tuning:
        """Measures which of the file's kernels are the fastest on this GPU, in seconds, and goes on with those.

        batch, height, width  of the images to be fast with; None: the trained size.  The choice is one for all batches:
                              results never depend on the batch.  From those of an engine that is not tuned they may
                              differ by a few roundings.
        output                a file to keep the choice in; None: the user's cache (`$UNET_FAST_CACHE`, else
                              `$XDG_CACHE_HOME/unet_fast`, else `~/.cache/unet_fast`), where every engine with the same
                              GPU code finds it that is opened on such a GPU with such a driver.

        Returns what was measured.  `UnsupportedError` on a CPU, `OSError` where the choice cannot be kept (the engine
        has it all the same), `ValueError` for a size that is not accepted, `MemoryError`, `DeviceError`.
        """
        from .tune import Tuning

        path = None if output is None else os.fsencode(os.path.abspath(os.fspath(output)))
        try:
            self._native.tune(path=path, **_pass_shape(batch, height, width))
        finally:
            self._passes = None  # whose contexts have the kernels of before
            self._refresh()
        return Tuning.read(self.info.tuning_file)

    def profile(self, *, batch: int = 1, height: int | None = None, width: int | None = None) -> Profile:
        """Times each op for about a second, on a CPU over at least four passes, on images of that size (None: the
        trained one), beside the most that this device can do.

        `ValueError` for a size that is not accepted, `UnsupportedError` on device cpu-reference, `MemoryError`,
        `DeviceError`.
        """
        from .profile import Profile

        ops, whole = self._native.profile(**_pass_shape(batch, height, width))
        side = self.info.tile
        return Profile.of(self, batch, height or side, width or side, ops, whole)

    @property
    def info(self) -> EngineInfo:
        """What the engine is now: an engine on device "auto" goes on with the CPU when its GPU is lost."""
        self._notice_lost_gpu()
        return self._info

    @property
    def healthy(self) -> bool:
        """Whether the engine can still work: False once the GPU that was asked for by name is lost."""
        return self._native.healthy()

    def _notice_lost_gpu(self) -> None:
        """Says once, as a `RuntimeWarning`, that the engine has gone on with the CPU or the GPUs that are left."""
        before = self._info.device
        if self._native.device() == before:
            return
        self._refresh()
        lost, now = before, self._info.device
        if isinstance(self._native, SeveralGpus):
            lost = f"one of {before}"
        warnings.warn(
            f"{lost} was lost, engine {self._info.name!r} goes on with {'the CPU' if now == 'cpu' else now}: "
            f"{self._info.device_reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _refresh(self) -> None:
        self._info = replace(self._info, **self._native.info())

    @property
    def source(self) -> str | bytes:
        """The engine file: its absolute path, or its contents if it was opened from bytes."""
        return self._source

    @property
    def device(self) -> str:
        """Where the engine runs: "cpu", "cpu-reference", "cuda:N" or "cuda:N,M"."""
        return self.info.device

    @property
    def device_reason(self) -> str:
        """Why that device was chosen, one sentence."""
        return self.info.device_reason

    @property
    def precision(self) -> str:
        """ "float32", "bf16", "fp16" or "int8"."""
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
        return (
            f"<Engine {info.name!r}: {info.tile}x{info.tile}, {info.channels} {unit} -> "
            f"{info.classes} {result}, {info.precision} on {described_device(info)}>"
        )

    def __reduce__(self) -> tuple[Callable[..., Engine], tuple[Any, ...]]:
        return _reopen, (self._source, self._options)


def _reopen(source: str | bytes, options: dict[str, Any]) -> Engine:
    return Engine(source, **options)


def described_device(info: EngineInfo) -> str:
    """The device, of a CPU with instruction set and threads: "cpu (avx2) x8"."""
    return info.device if info.device.startswith("cuda") else f"{info.device} ({info.cpu_isa}) x{info.threads}"


def check_threshold(info: EngineInfo, threshold: float | None) -> float:
    """The `threshold` of a mask as the C API takes it, where 0 is the default; errors as of `Engine.segment`."""
    if info.output == "identity":
        raise UnsupportedError(f"{info.name!r} is a regression, it has values and no mask; call probability() instead")
    if threshold is None:
        return 0.0
    if info.output == "softmax":
        raise ValueError(f"threshold is for one class; of the {info.classes} of {info.name!r} the likeliest is taken")
    limit = _as_float("threshold", threshold)
    if not 0 < limit < 1:
        raise ValueError(f"threshold must be between 0 and 1, both excluded, got {threshold!r}")
    return limit


def check_max_value(max_value: float | None) -> float:
    """`max_value` as the C API takes it, where 0 is the default; errors as of `Engine.segment`."""
    white = 0.0 if max_value is None else _as_float("max_value", max_value)
    if max_value is not None and not 0 < white < math.inf:
        raise ValueError(f"max_value must be positive and finite, got {max_value!r}")
    return white


def _class_names_and_palette(document: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """The two things in an engine file that are for people only, so that the runtime does not report them."""
    output = document["output"]
    try:
        names = tuple(str(name) for name in output["class_names"])
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in output["palette"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EngineFileError(f"engine file: malformed class names or palette: {error!r}") from None
    return names, palette


def _tiling_arguments(tiling: str, tile: int | None, overlap: int | None) -> tuple[int, int, int]:
    """The three as the C API takes them, where 0 is the default."""
    if not isinstance(tiling, str) or tiling not in TILINGS:
        raise ValueError(f"tiling must be one of {', '.join(TILINGS)}, got {tiling!r}")
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value is not None:
            _check_positive_integer(name, value)
    return TILINGS[tiling], tile or 0, overlap or 0


def _pass_shape(batch: int, height: int | None, width: int | None) -> dict[str, int]:
    """The three as the C API takes them, where 0 is the default."""
    for name, value in (("batch", batch), ("height", height), ("width", width)):
        if value is not None:
            _check_positive_integer(name, value)
    return {"count": batch, "height": height or 0, "width": width or 0}


def _check_positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 1 <= value <= _LARGEST_INT32:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _as_float(name: str, value: SupportsFloat) -> float:
    """`value` rounded to float32, the type of the C API."""
    try:
        if isinstance(value, str | bytes | bytearray):  # which float() would read
            raise TypeError
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(float(value)))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:  # of an integer
        raise ValueError(f"{name} is beyond the largest float") from None
