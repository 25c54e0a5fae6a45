"""Arrays in GPU memory through `Engine`, against the fake driver of tests/fake_cuda.

Streams of the fake do nothing until somebody waits for them, so an order that is not asked for shows.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import capi
from tests.fake_gpu import ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY, FakeDriver, on_fake_gpu
from tests.pixels import random_image
from tests.test_cuda_executor import file_with, frozen
from unet_fast import DeviceError, Engine, _native
from unet_fast.cuda_arrays import CudaArray, stream_handle

pytestmark = pytest.mark.skipif(not capi.LIBRARY.exists(), reason=f"no {capi.LIBRARY}")

Array = np.ndarray[Any, Any]
LEGACY = 1


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda_arrays")


class Interface:
    """Offers the CUDA array interface of memory at `address` that is laid out like `array`."""

    def __init__(self, address: int, array: Array, *, read_only: bool = False, **entries: Any) -> None:
        self.entries = {
            "version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": (address, read_only),
            "strides": array.strides, **entries,
        }  # fmt: skip

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.entries


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("axes", ctypes.c_int32), ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    name = b"dltensor"
    _fields_ = (("tensor", _DlTensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    name = b"dltensor_versioned"
    _fields_ = (
        ("version", ctypes.c_uint32 * 2), ("manager", ctypes.c_void_p), ("deleter", _Deleter),
        ("flags", ctypes.c_uint64), ("tensor", _DlTensor),
    )  # fmt: skip


#: Those whose tensors may be in use, since nobody else keeps them.
_producers: list[Any] = []


class Dlpack:
    """Offers DLPack of the same, as libraries before (`versioned=False`) and since version 1.0 do.

    streams   that consumers named
    taken     tensors that are in use
    """

    def __init__(
        self, address: int, array: Array, *, device: tuple[int, int] = (2, 0), versioned: bool = True, flags: int = 0,
        major: int = 1, strides: bool = True, code: int | None = None,
    ) -> None:  # fmt: skip
        axes = array.ndim
        self.address, self.array, self.device, self.versioned = address, array, device, versioned
        self.flags, self.major = flags, major
        self.code = {"u": 1, "f": 2}[array.dtype.kind] if code is None else code
        self.shape = (ctypes.c_int64 * axes)(*array.shape)
        self.strides = (ctypes.c_int64 * axes)(*(stride // array.itemsize for stride in array.strides))
        self.has_strides = strides
        self.streams: list[int | None] = []
        self.taken = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        if options and not self.versioned:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        managed: Any = _ManagedVersioned() if self.versioned else _Managed()
        if self.versioned:
            managed.version[:] = (self.major, 0)
            managed.flags = self.flags
        managed.tensor = _DlTensor(
            # Half of the address as an offset, which consumers must add.
            self.address - 64, (ctypes.c_int32 * 2)(*self.device), self.array.ndim, self.code,
            8 * self.array.itemsize, 1, self.shape, self.strides if self.has_strides else None, 64,
        )  # fmt: skip
        managed.deleter = _Deleter(self._delete)
        self.taken += 1
        _producers.append((self, managed))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(managed), managed.name, None)

    def _delete(self, _: int) -> None:
        self.taken -= 1


@contextmanager
def grey_engine(driver: FakeDriver, folder: Path, name: str = "plain") -> Iterator[Engine]:
    with driver.device():
        engine = Engine(file_with(folder, name), device="cuda")
        yield engine
        del engine
        gc.collect()


FORMS: dict[str, Callable[[int, Array], Any]] = {
    "interface 2": lambda address, array: Interface(address, array, version=2),
    "interface 3": Interface,
    "interface without strides": lambda address, array: Interface(address, array, strides=None),
    "dlpack": lambda address, array: Dlpack(address, array, versioned=False),
    "dlpack 1.0": Dlpack,
    "dlpack without strides": lambda address, array: Dlpack(address, array, strides=False),
    "managed memory": lambda address, array: Dlpack(address, array, device=(13, 0)),
}


@pytest.mark.parametrize("with_stream", [False, True])
@pytest.mark.parametrize("form", FORMS)
@on_fake_gpu
def test_gives_what_host_memory_gives(driver: FakeDriver, folder: Path, form: str, with_stream: bool) -> None:
    pixels = random_image((32, 40), seed=1)
    with grey_engine(driver, folder) as engine, driver.array(pixels) as source, driver.stream() as stream:
        image = FORMS[form](source, pixels)
        for run in (engine.segment, engine.probability):
            expected = run(pixels, tiling="none")
            result = run(image, tiling="none", stream=stream if with_stream else None)
            assert isinstance(result, CudaArray)
            assert (result.shape, result.dtype, result.device) == (expected.shape, expected.dtype, "cuda:0")
            assert np.array_equal(result.numpy(), expected)
            assert "cuda:0" in repr(result)
            del result
        del engine, run
    if isinstance(image, Dlpack):
        assert image.taken == 0
        assert set(image.streams) == {stream if with_stream else LEGACY}


@pytest.mark.parametrize("tiling", ["none", "fast", "exact", "resize"])
@pytest.mark.parametrize("name", ["plain", "rgb", "classes", "standardise", "valid_one_conv"])
@on_fake_gpu
def test_networks_and_tilings(driver: FakeDriver, folder: Path, name: str, tiling: Any) -> None:
    """Batches, on a stream, passes that fit and images that need more."""
    with grey_engine(driver, folder, name) as engine, driver.stream() as stream:
        channels = (engine.channels,) if engine.channels > 1 else ()
        side = engine.tile if tiling in ("none", "fast") else engine.tile + 5
        count = 11 if (name, tiling) == ("plain", "none") else 2  # more than one pass takes
        pixels = random_image((count, side, side, *channels), "float32", seed=2)
        with driver.array(pixels) as source:
            for run in (engine.segment, engine.probability):
                result = run(Dlpack(source, pixels), tiling=tiling, stream=stream)
                assert np.array_equal(result.numpy(), run(pixels, tiling=tiling))
            one = engine.probability(Interface(source, pixels[0]), tiling=tiling)
            assert np.array_equal(one.numpy(), engine.probability(pixels[0], tiling=tiling))
            del result, one


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@on_fake_gpu
def test_any_strides_of_an_image(driver: FakeDriver, folder: Path, dtype: str) -> None:
    wide = random_image((3, 36, 46), dtype, seed=3)  # planar, with gaps
    pixels = wide[::-1, 2:34, 3:43].transpose(1, 2, 0)
    offset = pixels.ctypes.data - wide.ctypes.data
    with grey_engine(driver, folder, "rgb") as engine, driver.array(wide) as source, driver.stream() as stream:
        expected = engine.probability(pixels, tiling="none")
        for form in (Interface, Dlpack):
            result = engine.probability(form(source + offset, pixels), tiling="none", stream=stream)
            assert np.array_equal(result.numpy(), expected)
            del result


@pytest.mark.parametrize("with_stream", [False, True])
@on_fake_gpu
def test_out(driver: FakeDriver, folder: Path, with_stream: bool) -> None:
    """Written where it is, with gaps between rows, and returned."""
    pixels = random_image((2, 32, 40), seed=4)
    canvas = np.full((2, 35, 50), 7, np.uint8)
    window = canvas[:, 1:33, 4:44]
    with (
        grey_engine(driver, folder) as engine,
        driver.array(pixels) as source,
        driver.array(canvas) as place,
        driver.stream() as stream,
    ):
        expected = engine.segment(pixels, tiling="none")
        out = Interface(place + 50 + 4, window)
        result = engine.segment(
            Interface(source, pixels), tiling="none", out=out, stream=stream if with_stream else None
        )
        assert result is out
        driver.synchronise(stream)
        written = driver.fetch(place, canvas)
        assert np.array_equal(written[:, 1:33, 4:44], expected)
        written[:, 1:33, 4:44] = 7
        assert (written == 7).all()
        mask = engine.segment(Interface(source, pixels), tiling="none")
        assert engine.segment(Interface(source, pixels), tiling="none", threshold=0.9, out=mask) is mask
        assert np.array_equal(mask.numpy(), engine.segment(pixels, tiling="none", threshold=0.9))
        del mask


# --- order ---


@pytest.mark.parametrize("with_stream", [False, True])
@on_fake_gpu
def test_waits_for_the_producer(driver: FakeDriver, folder: Path, with_stream: bool) -> None:
    """The image is still under way on the stream that its interface names."""
    pixels = random_image((32, 40), seed=5)
    nothing = np.zeros_like(pixels)
    with (
        grey_engine(driver, folder) as engine,
        driver.array(nothing) as source,
        driver.stream() as producer,
        driver.stream() as stream,
    ):
        expected = engine.probability(pixels, tiling="none")
        size = ctypes.c_size_t(pixels.nbytes)
        copy = (ctypes.c_ulonglong(source), ctypes.c_void_p(pixels.ctypes.data), size, ctypes.c_void_p(producer))
        driver.call("cuMemcpyHtoDAsync_v2", *copy)
        image = Interface(source, pixels, stream=producer)
        result = engine.probability(image, tiling="none", stream=stream if with_stream else None)
        assert np.array_equal(result.numpy(), expected)
        del result


@on_fake_gpu
def test_receivers_wait_for_the_result(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40), seed=6)
    with (
        grey_engine(driver, folder) as engine,
        driver.array(pixels) as source,
        driver.stream() as stream,
        driver.stream() as other,
    ):
        expected = engine.segment(pixels, tiling="none")

        def read_on(receiver: int, address: int) -> Array:
            copy = np.full_like(expected, 9)
            pinned = ctypes.c_void_p()
            driver.call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(copy.nbytes), 0)
            size = ctypes.c_size_t(copy.nbytes)
            driver.call("cuMemcpyDtoHAsync_v2", pinned, ctypes.c_ulonglong(address), size, ctypes.c_void_p(receiver))
            driver.synchronise(receiver)
            ctypes.memmove(copy.ctypes.data, pinned, copy.nbytes)
            driver.call("cuMemFreeHost", pinned)
            return copy

        ran = driver.report()["kernels_run"]
        result = engine.segment(Interface(source, pixels), tiling="none", stream=stream)
        assert driver.report()["kernels_run"] == ran  # enqueued, not run
        tensor = _native.Tensor(result.__dlpack__(stream=other, max_version=(1, 0)))
        assert driver.report()["kernels_run"] == ran
        assert np.array_equal(read_on(other, tensor.address), expected)
        assert driver.report()["kernels_run"] > ran
        # Without a wait, what is on the stream has not run.  (The first result stays: freeing it would wait.)
        second = engine.segment(Interface(source, pixels), tiling="none", stream=stream)
        early = _native.Tensor(second.__dlpack__(stream=-1))
        assert not np.array_equal(read_on(other, early.address), expected)
        # The interface waits itself.
        assert np.array_equal(driver.fetch(second.__cuda_array_interface__["data"][0], expected), expected)
        del result, tensor, second, early


@on_fake_gpu
def test_arrays_are_kept_until_the_pass_is_done(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40), seed=7)
    with (
        grey_engine(driver, folder) as engine,
        driver.array(pixels) as source,
        driver.array(pixels) as place,
        driver.stream() as stream,
    ):
        image, out = Dlpack(source, pixels), Dlpack(place, pixels)
        engine.segment(image, tiling="none", out=out, stream=stream)
        gc.collect()
        assert (image.taken, out.taken) == (1, 1)
        driver.synchronise(stream)
        engine.segment(Interface(source, pixels), tiling="none", stream=stream)
        assert (image.taken, out.taken) == (0, 0)
        last = Dlpack(source, pixels)
        engine.segment(last, tiling="none", out=out, stream=stream)
        assert last.taken == 1
        del engine
    assert (last.taken, out.taken) == (0, 0)


@on_fake_gpu
def test_streams_share_the_engine(driver: FakeDriver, folder: Path) -> None:
    """More streams and shapes than contexts are kept, in turns, with nothing waited for between."""
    with grey_engine(driver, folder) as engine, driver.stream() as one, driver.stream() as two:
        images = [random_image((8 * (2 + seed % 3), 40), seed=seed) for seed in range(12)]
        expected = [engine.segment(image, tiling="none") for image in images]
        results = []
        with driver.array(np.concatenate([image.ravel() for image in images])) as source:
            offset = source
            for index, image in enumerate(images):
                results.append(engine.segment(Interface(offset, image), tiling="none", stream=(one, two, 0)[index % 3]))
                offset += image.nbytes
            assert all(np.array_equal(r.numpy(), e) for r, e in zip(results, expected, strict=True))
        results.clear()


# --- the result as a citizen of other libraries ---


@on_fake_gpu
def test_result_offers_both_protocols(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((2, 32, 40), seed=8)
    with grey_engine(driver, folder, "classes") as engine, driver.array(pixels) as source:
        result = engine.probability(Interface(source, pixels), tiling="none")
        interface = result.__cuda_array_interface__
        assert interface["version"] == 3
        assert (interface["shape"], interface["typestr"]) == ((2, 32, 40, 5), "<f4")
        assert interface["strides"] is None
        assert interface["stream"] is None
        assert result.__dlpack_device__() == (2, 0)
        for options in ({}, {"max_version": (0, 8)}, {"max_version": (1, 0)}, {"stream": 1, "dl_device": (2, 0)}):
            tensor = _native.Tensor(result.__dlpack__(**options))
            assert tensor.device == (2, 0)
            assert tensor.address == interface["data"][0]
            assert (tensor.dtype, tuple(tensor.shape)) == ("float32", (2, 32, 40, 5))
            assert tuple(tensor.strides_bytes) == (25600, 800, 20, 4)
            assert not tensor.read_only
        for options in ({"dl_device": (1, 0)}, {"copy": True}):
            with pytest.raises(BufferError):
                result.__dlpack__(**options)
        # The memory lives as long as any of its users; a capsule that nobody took is one.
        live = driver.report()["live"]["memory"]
        capsule = result.__dlpack__(max_version=(1, 0))
        del result
        gc.collect()
        assert driver.report()["live"]["memory"] == live
        del tensor
        assert driver.report()["live"]["memory"] == live
        del capsule
        gc.collect()
        assert driver.report()["live"]["memory"] == live - 1


@on_fake_gpu
def test_result_as_an_image(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40), seed=9)
    with grey_engine(driver, folder) as engine, driver.array(pixels) as source, driver.stream() as stream:
        first = engine.segment(Interface(source, pixels), tiling="none", stream=stream)
        second = engine.segment(first, tiling="none", stream=stream)
        assert np.array_equal(second.numpy(), engine.segment(first.numpy(), tiling="none"))
        del first, second


def test_a_capsule_is_used_once() -> None:
    pixels = random_image((4, 5))
    producer = Dlpack(pixels.ctypes.data, pixels)
    capsule = producer.__dlpack__()
    tensor = _native.Tensor(capsule)
    with pytest.raises(TypeError, match="used before"):
        _native.Tensor(capsule)
    assert producer.taken == 1
    del tensor
    assert producer.taken == 0
    with pytest.raises(TypeError, match="no capsule"):
        _native.Tensor(object())
    with pytest.raises(TypeError, match=r"DLPack 2\.0"):
        _native.Tensor(Dlpack(pixels.ctypes.data, pixels, major=2).__dlpack__())


# --- what is refused ---


def _bad_arrays(source: int, pixels: Array) -> list[tuple[Any, type[Exception], str]]:
    spread = np.lib.stride_tricks.as_strided(pixels, (32, 40), (0, 1))
    odd = np.zeros((32, 40), np.uint16)
    return [
        (Dlpack(source, pixels, device=(2, 1)), ValueError, "image is in memory of cuda:1; this engine runs on cuda:0"),
        (Dlpack(source, pixels, device=(10, 0)), TypeError, "memory of a device"),
        (Dlpack(source, pixels, code=0), TypeError, "got int8"),
        (Dlpack(source, pixels, code=4), TypeError, "got bfloat8"),
        (Interface(source, pixels.astype(np.float64)), TypeError, r"got float64; convert with image.astype"),
        (Interface(source, pixels, typestr="|b1"), TypeError, "got bool"),
        (Interface(source, pixels[0]), ValueError, "shape"),
        (Interface(source, pixels[:0]), ValueError, "empty"),
        (Interface(source, spread), ValueError, "repeated axis"),
        (Interface(source + 1, odd), ValueError, "aligned"),
        (Interface(source, odd, strides=(81, 2)), ValueError, "aligned"),
        (Interface(source, pixels, mask=object()), TypeError, "mask"),
        (Interface(source, pixels, stream=0), TypeError, "stream 0"),
        (Interface(source, pixels, strides=(1,)), TypeError, "rank"),
        (Interface(source, pixels, shape="wide"), TypeError, "malformed"),
        (Interface(pixels.ctypes.data, pixels), ValueError, "not an address that CUDA knows"),
    ]


@on_fake_gpu
def test_bad_images(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40), seed=10)
    driver.configure([{}, {}])
    with grey_engine(driver, folder) as engine, driver.array(pixels) as source, driver.stream() as stream:
        for use in (None, stream):
            for image, error, expected in _bad_arrays(source, pixels):
                with pytest.raises(error, match=expected):
                    engine.segment(image, tiling="none", stream=use)
                assert not isinstance(image, Dlpack) or image.taken == 0
        with driver.device(1), driver.array(pixels) as elsewhere, driver.stream() as foreign:
            with pytest.raises(ValueError, match="in memory of cuda:1; this engine runs on cuda:0"):
                engine.segment(Interface(elsewhere, pixels), tiling="none")
            with pytest.raises(ValueError, match="belongs to another device or CUDA context"):
                engine.segment(Interface(source, pixels), tiling="none", stream=foreign)
        result = engine.segment(Interface(source, pixels), tiling="none", stream=stream)
        assert np.array_equal(result.numpy(), engine.segment(pixels, tiling="none"))
        del result


@on_fake_gpu
def test_bad_out(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40), seed=11)
    large = np.zeros((64, 100), np.uint8)
    with grey_engine(driver, folder) as engine, driver.array(pixels) as source, driver.array(large) as place:
        mask = large[:32, :40]
        for out, error, expected in (
            (np.zeros((32, 40), np.uint8), TypeError, "out must be an array in GPU memory"),
            (Interface(place, mask, read_only=True), ValueError, "read-only"),
            (Dlpack(place, mask, flags=1), ValueError, "read-only"),
            (Interface(place, mask.astype(np.float32)), TypeError, "dtype uint8, got float32"),
            (Interface(place, large), ValueError, r"shape \(32, 40\), got \(64, 100\)"),
            (Interface(place, large[:32, :80:2]), ValueError, "contiguous rows"),
            (Interface(place + 3100, large[31::-1, :40]), ValueError, "negative"),
            (Interface(place, np.asfortranarray(mask)), ValueError, "contiguous rows"),
            (Interface(place, mask, strides=(0, 1)), ValueError, "repeated"),
            (Interface(source, pixels), ValueError, "shares memory with image"),
            (Interface(source + 1279, pixels), ValueError, "shares memory with image"),
            (Dlpack(place, mask, device=(2, 1)), ValueError, "out is in memory of cuda:1"),
        ):
            with pytest.raises(error, match=expected):
                engine.segment(Interface(source, pixels), tiling="none", out=out)
        with pytest.raises(TypeError, match="out must be a NumPy array, as image is in host memory"):
            engine.segment(pixels, tiling="none", out=Interface(place, mask))
        with pytest.raises(ValueError, match="stream is for arrays in GPU memory"):
            engine.segment(pixels, tiling="none", stream=LEGACY)


@on_fake_gpu
def test_an_engine_on_the_cpu_does_not_read_gpu_memory(driver: FakeDriver, folder: Path) -> None:
    pixels = random_image((32, 40))
    with driver.device(), driver.array(pixels) as source:
        engine = Engine(frozen(folder), device="cpu")
        for image in (Interface(source, pixels), Dlpack(source, pixels)):
            with pytest.raises(TypeError, match=r"this engine runs on cpu; copy it with \.cpu\(\)"):
                engine.segment(image)


def test_streams_of_other_libraries() -> None:
    class Torch:
        cuda_stream = 77

    class Cupy:
        ptr = 78

    class Core:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 79

    assert [stream_handle(stream) for stream in (None, 0, 1, 2, 76)] == [None, LEGACY, LEGACY, 2, 76]
    assert [stream_handle(stream) for stream in (Torch(), Cupy(), Core())] == [77, 78, 79]
    for wrong in ("0", 1.0, True, object()):
        with pytest.raises(TypeError, match="stream must be"):
            stream_handle(wrong)
    with pytest.raises(ValueError, match="stream must be"):
        stream_handle(-1)


@on_fake_gpu
def test_closing_lets_callbacks_have_the_gil(driver: FakeDriver, folder: Path) -> None:
    """What waits for the GPU when it goes holds up no callback there that runs Python."""
    called = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def callback(_: int) -> None:
        called.append(name)

    faulthandler.dump_traceback_later(60, exit=True)  # they would wait for each other
    with driver.device(), driver.stream() as stream:
        engine = Engine(file_with(folder), device="cuda")._native
        assert isinstance(engine, _native.Engine)
        alive: dict[str, Any] = {
            "context": _native.Context(engine, count=1, height=32, width=32),
            "memory": _native.Device(0).allocate(100),
            "tensor": _native.Device(0).allocate(100).dlpack(shape=[100], is_float=False, bits=8, versioned=True),
            "engine": engine,
        }
        del engine
        for name in list(alive):
            driver.call("cuLaunchHostFunc", ctypes.c_void_p(stream), callback, None)
            del alive[name]
            assert called[-1:] == [name]
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("error", [INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS])
@on_fake_gpu
def test_any_call_may_fail(driver: FakeDriver, folder: Path, error: int) -> None:
    """An exception, nothing left behind, and the engine, unless the GPU is lost, goes on."""
    pixels = random_image((8, 8), seed=12)
    with driver.device(), driver.array(pixels) as source, driver.stream() as stream:

        def opened() -> Engine:
            return Engine(file_with(folder), device="cuda")

        def work(engine: Engine) -> Array:
            image = Interface(source, pixels, stream=LEGACY)
            return engine.segment(image, tiling="none", stream=stream).numpy()

        engine = opened()
        expected = engine.segment(pixels, tiling="none")
        work(engine)
        before = driver.report()["calls"]
        work(engine)
        failures = 0
        for call in range(1, driver.report()["calls"] - before + 1):
            driver.fail(call, error, lasting=error == ILLEGAL_ADDRESS)
            try:
                result = work(engine)
            except (DeviceError, MemoryError, ValueError):  # of an address that CUDA does not know
                failures += 1
            else:
                assert np.array_equal(result, expected)
            driver.fail(0, 0)
            if error == ILLEGAL_ADDRESS:
                engine = opened()
            assert np.array_equal(work(engine), expected)
        assert failures >= 5
