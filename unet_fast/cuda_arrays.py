"""Arrays in GPU memory: those that callers hand to `Engine`, and the one that it gives back.

Callers' arrays come by DLPack or the CUDA array interface and are read and written where they are.  Work is ordered by
streams: the producer of an array makes the stream on which the engine works wait for what it still does to it, and who
reads a `CudaArray` is made to wait in turn.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import check_result

_DLPACK_CUDA, _DLPACK_CUDA_MANAGED = 2, 13
#: The legacy default stream, as streams are numbered in both protocols.  0 means it too, where a caller says it.
LEGACY_STREAM = 1
#: Contexts that wait for their next pass on some stream; each has the memory of one pass.
_MOST_IDLE_CONTEXTS = 4
#: As in csrc/tiled_run.cpp: several small images go through one pass, more gain nothing.
_MOST_PASS_IMAGES, _MOST_PASS_PIXELS = 8, 2**20


def is_cuda_array(array: Any) -> bool:
    """Whether `array` is in GPU memory, by what it says about itself."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def stream_handle(stream: Any) -> int | None:
    """The CUstream behind what a caller names as a stream: an integer, or an object of PyTorch, CuPy or cuda.core.
    None stays None."""
    if stream is None:
        return None
    handle = stream
    if hasattr(stream, "__cuda_stream__"):
        handle = stream.__cuda_stream__()[1]
    else:
        for attribute in ("cuda_stream", "ptr"):  # PyTorch, CuPy
            handle = getattr(stream, attribute, handle)
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"stream must be a CUDA stream or its address as an integer, got {type(stream).__name__}")
    if handle < 0:
        raise ValueError(f"stream must be the address of a CUDA stream, got {handle}")
    return handle or LEGACY_STREAM


@dataclass(frozen=True)
class View:
    """An array in GPU memory, kept alive as long as this.

    strides    in bytes
    dtype      as NumPy names it
    owner      the tensor or array that the memory belongs to
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    read_only: bool
    owner: Any

    @property
    def pixels(self) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
        """As the native module takes it."""
        return self.address, self.dtype, self.shape, self.strides

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    def span(self) -> tuple[int, int]:
        """First address of it and first behind it."""
        reach = [stride * (size - 1) for size, stride in zip(self.shape, self.strides, strict=True)]
        return self.address + sum(min(r, 0) for r in reach), self.address + sum(
            max(r, 0) for r in reach
        ) + self.item_bytes

    def indexed(self, index: Sequence[slice | None]) -> View:
        """With an axis of one element for each None; slices take whole axes."""
        shape, strides = iter(self.shape), iter(self.strides)
        return replace(
            self,
            shape=tuple(1 if one is None else next(shape) for one in index),
            strides=tuple(0 if one is None else next(strides) for one in index),
        )

    def part(self, first: int, count: int) -> View:
        """`count` elements of the first axis."""
        return replace(self, address=self.address + first * self.strides[0], shape=(count, *self.shape[1:]))


def view_of(array: Any, name: str, ordinal: int, device: _native.Device, stream: int) -> View:
    """Somebody's array, safe to use on `stream` from now on.  `name`: the argument that it is, for messages.

    `TypeError` for what does not follow its protocol, `ValueError` for memory of another GPU.
    """
    if hasattr(array, "__dlpack__"):
        return _from_dlpack(array, name, ordinal, stream)
    return _from_interface(array, name, device, stream)


def _from_dlpack(array: Any, name: str, ordinal: int, stream: int) -> View:
    number = int(array.__dlpack_device__()[1])
    if number != ordinal:
        raise ValueError(f"{name} is in memory of cuda:{number}; this engine runs on cuda:{ordinal}")
    try:
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack 1.0
            capsule = array.__dlpack__(stream=stream)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{name} ({type(array).__name__}) cannot be shared over DLPack: {error}") from error
    tensor = _native.Tensor(capsule)
    return View(
        tensor.address, tensor.dtype, tuple(tensor.shape), tuple(tensor.strides_bytes), tensor.read_only, tensor
    )


def _from_interface(array: Any, name: str, device: _native.Device, stream: int) -> View:
    interface = array.__cuda_array_interface__
    try:
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address, read_only = interface["data"]
        strides = interface.get("strides")
        if strides is None:
            strides = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        producer = interface.get("stream")
        view = View(int(address), str(dtype), shape, tuple(map(int, strides)), bool(read_only), array)
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(f"{name} has a malformed __cuda_array_interface__: {error!r}") from None
    if interface.get("mask") is not None or len(view.strides) != len(shape) or producer == 0:
        raise TypeError(f"{name} has a __cuda_array_interface__ with a mask, stream 0 or strides of another rank")
    if producer is not None and producer != stream:
        device.record(producer).hold(stream)
    return view


def check_strides(name: str, view: View) -> None:
    """What the runtime cannot read in place on a GPU: there it copies nothing."""
    strides = [stride for size, stride in zip(view.shape, view.strides, strict=True) if size > 1]
    if 0 in strides or any(number % view.item_bytes for number in (view.address, *strides)):
        raise ValueError(
            f"{name} in GPU memory must be aligned and have no repeated axis, its strides are {view.strides} bytes; "
            "make a contiguous copy"
        )


def view_of_out(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    class_axes: int,
    image: View,
    ordinal: int,
    device: _native.Device,
    stream: int,
) -> View:
    if not is_cuda_array(out):
        raise TypeError(f"out must be an array in GPU memory, as image is, got {type(out).__name__}")
    view = view_of(out, "out", ordinal, device, stream)
    check_result(view.dtype, view.shape, view.strides, view.read_only, shape, dtype, class_axes)
    check_strides("out", view)
    (first, end), (image_first, image_end) = view.span(), image.span()
    if first < image_end and image_first < end:
        raise ValueError("out shares memory with image; the result is written while the image is still read")
    return view


class CudaArray:
    """A result in GPU memory: uint8 masks or float32 probabilities, C order.

    Other libraries take it without a copy, by DLPack (`torch.from_dlpack(result)`) or by the CUDA array interface
    (`cupy.asarray(result)`).  Its memory is freed with the last of this object and of what was made of it by DLPack;
    who uses the interface must keep this object.

    It may be handed on before the GPU is done, if the engine was called with a stream: DLPack makes the stream of the
    receiver wait, `__cuda_array_interface__` and `numpy()` wait themselves.
    """

    def __init__(self, device: _native.Device, ordinal: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._ordinal = ordinal
        self._memory = device.allocate(math.prod(shape) * dtype.itemsize)
        self._ready: _native.Event | None = None

    @property
    def device(self) -> str:
        """ "cuda:N"."""
        return f"cuda:{self._ordinal}"

    def numpy(self) -> NDArray[Any]:
        """A copy in host memory."""
        self._wait()
        result = np.empty(self.shape, self.dtype)
        self._memory.fetch(result)
        return result

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._wait()
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self._ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """`stream`: on which the receiver will read, None for the legacy default stream, -1 to do without waiting."""
        if dl_device is not None and (int(dl_device[0]), int(dl_device[1])) != self.__dlpack_device__():
            raise BufferError(f"this array is on {self.device} and stays there; copy it with numpy()")
        if copy:
            raise BufferError("a copy is not offered; copy what you make of this array")
        if self._ready is not None and stream != -1:
            self._ready.hold(stream or LEGACY_STREAM)
        return self._memory.dlpack(
            shape=self.shape,
            is_float=self.dtype.kind == "f",
            bits=8 * self.dtype.itemsize,
            versioned=max_version is not None and max_version[0] >= 1,
        )

    def __repr__(self) -> str:
        return f"<CudaArray {self.dtype} {self.shape} on {self.device}>"

    def view(self) -> View:
        """For the engine, which writes it."""
        strides = [self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return View(self._memory.address, str(self.dtype), self.shape, tuple(strides), False, self._memory)

    def comes_after(self, ready: _native.Event) -> None:
        """For the engine: this is not to be read before `ready`."""
        self._ready = ready

    def _wait(self) -> None:
        if self._ready is not None:
            self._ready.wait()
            self._ready = None


class Passes:
    """Passes on streams of callers: the contexts that they run in, and the arrays that they still use."""

    def __init__(self, engine: _native.Engine, ordinal: int) -> None:
        # A context on a stream of its own: passes of one context follow each other.
        self._idle: dict[tuple[int, ...], list[_native.Context]] = {}
        self._running: deque[tuple[_native.Event, tuple[View, View]]] = deque()
        self._lock = threading.Lock()
        self._engine = engine
        self.device = _native.Device(ordinal)

    def run(self, image: View, out: View, stream: int, *, max_value: float, threshold: float) -> _native.Event:
        """Puts passes over (N, H, W, C) on the stream; returns their end.  Both arrays are kept until then."""
        count, height, width, _ = image.shape
        together = 1
        while together < count and 2 * together <= min(_MOST_PASS_IMAGES, _MOST_PASS_PIXELS // (height * width)):
            together *= 2
        key = (together, height, width, stream)
        context = self._take(key)
        for first in range(0, count, together):
            number = min(together, count - first)
            context.enqueue(
                image.part(first, number).pixels,
                out.part(first, number).pixels,
                max_value=max_value,
                threshold=threshold,
                stream=stream,
            )
        end = self.device.record(stream)
        self._give_back(key, context, end, (image, out))
        return end

    def __del__(self) -> None:
        # Contexts wait for their last pass; only then may the arrays go.
        self._idle.clear()
        self._running.clear()

    def _take(self, key: tuple[int, ...]) -> _native.Context:
        """A context for passes of this shape on this stream; lets go of the arrays of passes that are done."""
        done = []  # freed without the lock
        with self._lock:
            while self._running and self._running[0][0].done():
                done.append(self._running.popleft())
            if idle := self._idle.get(key):
                return idle.pop()
        count, height, width, _ = key
        return _native.Context(self._engine, count=count, height=height, width=width)

    def _give_back(
        self, key: tuple[int, ...], context: _native.Context, end: _native.Event, arrays: tuple[View, View]
    ) -> None:
        spare = []  # freed without the lock, which waits for their last pass
        with self._lock:
            self._running.append((end, arrays))
            self._idle[key] = [*self._idle.pop(key, []), context]  # the latest key comes last
            while sum(map(len, self._idle.values())) > _MOST_IDLE_CONTEXTS:
                spare.append(self._idle.pop(next(iter(self._idle))))
