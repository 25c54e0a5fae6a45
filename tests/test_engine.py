"""`unet_fast.Engine`: every form of image, every bad argument, and what an engine says about itself.

What the numbers should be is judged in test_correctness.py; here every form of an image must give the same bits as the
plainest form of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unet_fast
from tests.networks import random_weights
from tests.pixels import random_image
from unet_fast import DeviceError, Engine, EngineFileError, UnsupportedError, freeze
from unet_fast.graph import from_spec
from unet_fast.spec import UNetSpec

Files = Callable[..., Path]
CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def grey(engine_file: Files) -> Engine:
    return Engine(engine_file("plain"), **CPU)


@pytest.fixture(scope="module")
def rgb(engine_file: Files) -> Engine:
    return Engine(engine_file("rgb"), **CPU)


@pytest.fixture(scope="module")
def classes(engine_file: Files) -> Engine:
    return Engine(engine_file("classes"), **CPU)


# --- forms of an image ---


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("shape", "leading"),
    [
        ((32, 32), (32, 32)),
        ((32, 32, 1), (32, 32)),
        ((3, 32, 32), (3, 32, 32)),
        ((3, 32, 32, 1), (3, 32, 32)),
        ((1, 32, 32), (1, 32, 32)),
        ((2, 32, 1), None),
        ((1, 1), (1, 1)),  # smaller than the network's granularity
        ((3, 45, 71), (3, 45, 71)),
    ],
)
def test_grey_shapes(grey: Engine, shape: tuple[int, ...], leading: tuple[int, ...] | None, dtype: str) -> None:
    image = random_image(shape, dtype)
    leading = leading or shape[:2]  # the last axis is channels if it is 1
    mask, probability = grey.segment(image), grey.probability(image)
    assert mask.shape == leading
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert probability.shape == leading
    assert probability.dtype == np.float32
    assert np.isfinite(probability).all()


@pytest.mark.parametrize(("shape", "leading"), [((40, 32, 3), (40, 32)), ((2, 40, 32, 3), (2, 40, 32))])
def test_colour_shapes(rgb: Engine, shape: tuple[int, ...], leading: tuple[int, ...]) -> None:
    assert rgb.segment(random_image(shape)).shape == leading
    assert rgb.probability(random_image(shape)).shape == leading


def test_class_shapes(classes: Engine) -> None:
    image = random_image((2, 32, 32))
    probability = classes.probability(image)
    assert probability.shape == (2, 32, 32, 5)
    assert classes.probability(image[0]).shape == (32, 32, 5)
    mask = classes.segment(image)
    assert mask.shape == (2, 32, 32)
    assert np.array_equal(mask, probability.argmax(axis=-1))


def test_regression_has_values_and_no_mask(engine_file: Files) -> None:
    engine = Engine(engine_file("regression"), **CPU)
    assert engine.probability(random_image((32, 32))).shape == (32, 32, 3)
    with pytest.raises(UnsupportedError, match="probability"):
        engine.segment(random_image((32, 32)))


def _unaligned(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    buffer = bytearray(1) + image.tobytes()
    return np.frombuffer(buffer, image.dtype, image.size, offset=1).reshape(image.shape)


def _read_only(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = image.view()
    view.flags.writeable = False
    return view


def _spread(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values, every second element of a larger array on each axis, poison between."""
    large = np.full([2 * size for size in image.shape], 77, image.dtype)
    view = large[tuple(slice(None, None, 2) for _ in image.shape)]
    view[...] = image
    return view


def _backwards(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    every = tuple(slice(None, None, -1) for _ in image.shape)
    return image[every].copy()[every]


def _planar(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.moveaxis(np.moveaxis(image, -1, 0).copy(), 0, -1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("form", [_unaligned, _read_only, _spread, _backwards, _planar, np.asfortranarray])
def test_memory_layout_does_not_matter(rgb: Engine, form: Callable[..., Any], dtype: str) -> None:
    image = random_image((2, 45, 38, 3), dtype)
    other = form(image)
    assert np.array_equal(other, image)
    assert np.array_equal(rgb.probability(other), rgb.probability(image))
    assert np.array_equal(rgb.segment(other), rgb.segment(image))


def test_broadcast_axes(grey: Engine, rgb: Engine) -> None:
    """NumPy's stride 0 is a default in the C API; it must not be passed on."""
    image = random_image((32, 40))
    assert np.array_equal(
        grey.probability(np.broadcast_to(image, (3, 32, 40))), grey.probability(np.stack([image] * 3))
    )
    colour = np.broadcast_to(image[:, :, None], (32, 40, 3))
    assert np.array_equal(rgb.probability(colour), rgb.probability(colour.copy()))
    constant = np.broadcast_to(np.float32(0.5), (32, 40))
    assert np.array_equal(grey.probability(constant), grey.probability(constant.copy()))


def test_axes_of_one_element_may_have_any_stride(grey: Engine) -> None:
    column = random_image((32, 40))[:, 3:4]
    assert np.array_equal(grey.probability(column[None, :, :, None]), grey.probability(column.copy()[None, :, :, None]))


def test_dlpack_and_array_interface(grey: Engine) -> None:
    torch = pytest.importorskip("torch")
    image = random_image((32, 32), "float32")
    expected = grey.probability(image)

    class Interface:
        __array_interface__ = image.__array_interface__

    class ArrayProtocol:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return image

    assert np.array_equal(grey.probability(torch.from_numpy(image)), expected)
    assert np.array_equal(grey.probability(torch.from_numpy(image.T.copy()).T), expected)
    assert np.array_equal(grey.probability(Interface()), expected)
    assert np.array_equal(grey.probability(ArrayProtocol()), expected)
    with pytest.raises(TypeError, match="gradient"):
        grey.probability(torch.from_numpy(image).requires_grad_())


def test_arrays_of_a_device_are_refused(grey: Engine) -> None:
    class OnDevice:
        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(TypeError, match=r"\.cpu\(\)"):
        grey.segment(OnDevice())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "F"])
def test_pillow_images(grey: Engine, rgb: Engine, mode: str) -> None:
    if mode.startswith("I;16"):
        picture = Image.frombytes(
            mode, (40, 32), random_image((32, 40), "uint16").astype("<u2" if mode == "I;16" else ">u2").tobytes()
        )
        expected = random_image((32, 40), "uint16")
    elif mode == "F":
        expected = random_image((32, 40), "float32")
        picture = Image.fromarray(expected)
    else:
        picture = Image.fromarray(random_image((32, 40, 3))).convert(mode)
        expected = np.asarray(picture.convert("L" if mode in ("1", "L", "LA") else "RGB"))
    if expected.ndim == 2:
        assert np.array_equal(grey.probability(picture), grey.probability(expected))
        repeated = np.repeat(expected[:, :, None], 3, axis=2)
        assert np.array_equal(rgb.probability(picture), rgb.probability(repeated))
    else:
        assert np.array_equal(rgb.probability(picture), rgb.probability(expected))
        luma = ((expected.astype(int) @ [299, 587, 114] + 500) // 1000).astype(np.uint8)
        assert np.array_equal(grey.probability(picture), grey.probability(luma))


def test_same_picture_in_every_dtype(grey: Engine) -> None:
    image = random_image((32, 32))
    expected = grey.probability(image)
    for other in (image.astype(np.uint16) * 257, image.astype(np.float32) / 255):
        np.testing.assert_allclose(grey.probability(other), expected, atol=1e-5)
    twelve_bit = image.astype(np.uint16) * 16
    np.testing.assert_allclose(grey.probability(twelve_bit, max_value=255 * 16), expected, atol=1e-5)
    np.testing.assert_allclose(grey.probability(image.astype(np.float32), max_value=255), expected, atol=1e-5)


# --- options of a call ---


def test_threshold(grey: Engine) -> None:
    image = random_image((64, 64))
    probability = grey.probability(image)
    for threshold in (0.1, 0.5, 0.9, float(np.median(probability))):
        mask = grey.segment(image, threshold=threshold)
        clear = np.abs(probability - threshold) > 1e-5  # masks compare logits, which round differently
        assert np.array_equal((mask == 255)[clear], (probability > threshold)[clear])
    assert np.array_equal(grey.segment(image), grey.segment(image, threshold=grey.info.threshold))


def test_out_is_written_and_returned(grey: Engine, classes: Engine) -> None:
    images = random_image((2, 32, 40))
    mask = np.full((2, 32, 40), 7, np.uint8)
    assert grey.segment(images, out=mask) is mask
    assert np.array_equal(mask, grey.segment(images))
    probability = np.full((32, 40, 5), np.nan, np.float32)
    assert classes.probability(images[0], out=probability) is probability
    assert np.array_equal(probability, classes.probability(images[0]))


def test_out_may_be_a_window_of_a_larger_array(grey: Engine) -> None:
    image = random_image((32, 40))
    canvas = np.full((50, 60), 7, np.uint8)
    grey.segment(image, out=canvas[5:37, 10:50])
    assert np.array_equal(canvas[5:37, 10:50], grey.segment(image))
    canvas[5:37, 10:50] = 7
    assert (canvas == 7).all()


@pytest.mark.parametrize("tiling", ["fast", "exact", "resize"])
def test_any_size_gives_a_result_of_that_size(grey: Engine, tiling: Any) -> None:
    for size in ((1, 1), (1, 100), (100, 1), (31, 33), (129, 70)):
        assert grey.output_size(*size, tiling=tiling) == size
        probability = grey.probability(random_image(size), tiling=tiling)
        assert probability.shape == size
        assert ((probability >= 0) & (probability <= 1)).all()


def test_one_pass_wants_a_legal_size(grey: Engine, engine_file: Files) -> None:
    assert grey.probability(random_image((36, 44)), tiling="none").shape == (36, 44)
    with pytest.raises(ValueError, match="37"):
        grey.probability(random_image((37, 44)), tiling="none")
    valid = Engine(engine_file("valid"), **CPU)
    side, margin = valid.info.minimum, valid.info.margin
    assert margin > 0
    assert valid.probability(random_image((side, side)), tiling="none").shape == (side - 2 * margin,) * 2
    assert valid.probability(random_image((side, side))).shape == (side, side)


# --- bad images ---


@pytest.mark.parametrize(
    ("image", "error", "hint"),
    [
        (np.zeros(32, np.uint8), ValueError, "shape"),
        (np.zeros((1, 1, 32, 32, 1), np.uint8), ValueError, "shape"),
        (np.uint8(3), ValueError, "shape"),
        (np.zeros((32, 32, 3), np.uint8), ValueError, "to_channels"),
        (np.zeros((2, 32, 32, 3), np.uint8), ValueError, "shape"),
        (np.zeros((1, 3, 32, 32), np.uint8), ValueError, "shape"),
        (np.zeros((0, 32), np.uint8), ValueError, "empty"),
        (np.zeros((32, 0), np.uint8), ValueError, "empty"),
        (np.zeros((0, 32, 32), np.uint8), ValueError, "empty"),
        (np.zeros((32, 32), bool), TypeError, r"astype\(np.uint8\) \* 255"),
        (np.zeros((32, 32), np.int64), TypeError, r"astype\(np.uint16\)"),
        (np.zeros((32, 32), np.int8), TypeError, "int8"),
        (np.zeros((32, 32), np.uint32), TypeError, "uint32"),
        (np.zeros((32, 32), np.float64), TypeError, r"astype\(np.float32\)"),
        (np.zeros((32, 32), np.float16), TypeError, r"astype\(np.float32\)"),
        (np.zeros((32, 32), ">u2"), TypeError, "byte order"),
        (np.zeros((32, 32), ">f4"), TypeError, "byte order"),
        (np.zeros((32, 32), complex), TypeError, "complex"),
        (np.zeros((32, 32), object), TypeError, "object"),
        (np.full((32, 32), "x"), TypeError, "<U1"),
        (np.full((32, 32), np.nan, np.float32), ValueError, "(?i)nan|finite"),
        (np.full((32, 32), np.inf, np.float32), ValueError, "(?i)inf"),
        (np.full((32, 32), -np.inf, np.float32), ValueError, "(?i)inf"),
        ([[0, 1], [2, 3]], TypeError, "list"),
        ("cell.png", TypeError, "str"),
        (None, TypeError, "NoneType"),
    ],
)
def test_bad_images(grey: Engine, image: Any, error: type[Exception], hint: str) -> None:
    for call in (grey.segment, grey.probability):
        with pytest.raises(error, match=hint):
            call(image)
    assert grey.segment(random_image((32, 32))).shape == (32, 32)  # and the engine is still well


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (0, 44, 70), (1, 20, 3), (1, 44, 70)])
def test_one_bad_pixel_is_found(grey: Engine, bad: float, place: tuple[int, int, int]) -> None:
    image = random_image((2, 45, 71), "float32")
    image[place] = bad
    for tiling in ("fast", "exact", "resize"):
        with pytest.raises(ValueError, match=r"(?i)nan|inf"):
            grey.segment(image, tiling=tiling)


@pytest.mark.parametrize(
    "shape", [(32, 32), (32, 32, 1), (32, 32, 4), (3, 32, 32), (2, 32, 32, 1), (2, 3, 32, 32), (2, 2, 32, 32, 3)]
)
def test_wrong_channels(rgb: Engine, shape: tuple[int, ...]) -> None:
    hint = "moveaxis" if shape[-3:] == (3, 32, 32) else "shape"
    with pytest.raises(ValueError, match=hint):
        rgb.segment(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": 1}, ValueError),
        ({"threshold": -0.5}, ValueError),
        ({"threshold": float("nan")}, ValueError),
        ({"threshold": 1e-60}, ValueError),
        ({"threshold": "high"}, TypeError),
        ({"threshold": "0.5"}, TypeError),
        ({"tiling": "blocks"}, ValueError),
        ({"tiling": 1}, ValueError),
        ({"tiling": ["fast"]}, ValueError),
        ({"tile": 0}, ValueError),
        ({"tile": -32}, ValueError),
        ({"tile": 2**40}, ValueError),
        ({"tile": 32.0}, TypeError),
        ({"tile": True}, TypeError),
        ({"overlap": 0}, ValueError),
        ({"overlap": 10_000}, ValueError),
        ({"max_value": 0}, ValueError),
        ({"max_value": -1}, ValueError),
        ({"max_value": float("inf")}, ValueError),
        ({"max_value": 1e300}, ValueError),
        ({"max_value": "white"}, TypeError),
        ({"max_value": b"255"}, TypeError),
        ({"out": [0]}, TypeError),
        ({"out": np.zeros((40, 50), np.float32)}, TypeError),
        ({"out": np.zeros((40, 51), np.uint8)}, ValueError),
        ({"out": np.zeros((1, 40, 50), np.uint8)}, ValueError),
        ({"out": np.zeros((40, 100), np.uint8)[:, ::2]}, ValueError),
        ({"out": np.zeros((40, 50), np.uint8)[::-1]}, ValueError),
        ({"out": np.asfortranarray(np.zeros((40, 50), np.uint8))}, ValueError),
        ({"out": _read_only(np.zeros((40, 50), np.uint8))}, ValueError),
    ],
)
def test_bad_options_of_a_call(grey: Engine, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        grey.segment(random_image((40, 50)), **options)


def test_a_threshold_is_for_one_class(classes: Engine) -> None:
    with pytest.raises(ValueError, match="threshold is for one class"):
        classes.segment(random_image((40, 50)), threshold=0.5)


def test_out_must_not_be_the_image(grey: Engine) -> None:
    image = random_image((40, 50))
    with pytest.raises(ValueError, match="memory"):
        grey.segment(image, out=image)


# --- engine files ---


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Engine(tmp_path / "none.unet")
    assert caught.value.filename == str(tmp_path / "none.unet")
    with pytest.raises(FileNotFoundError, match="odd imäges µ/nope") as caught:
        Engine("odd imäges µ/nope.unet")
    assert caught.value.filename == "odd imäges µ/nope.unet"
    with pytest.raises(IsADirectoryError):
        Engine(tmp_path)
    secret = tmp_path / "secret.unet"
    secret.touch(mode=0)
    if os.geteuid():
        with pytest.raises(PermissionError):
            Engine(secret)


def _with_document(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["unet_fast"])
    change(document)
    header["__metadata__"]["unet_fast"] = json.dumps(document)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_foreign_damaged_and_newer_files(engine_file: Files, tmp_path: Path) -> None:
    good = engine_file("plain").read_bytes()
    png = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(png)
    weights_only = len(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}').to_bytes(8, "little")
    weights_only += b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(4)
    newer = _with_document(good, lambda document: document.update(format_version=99))
    for data in (b"", b"x", png.read_bytes(), good[:7], good[:100], good[:-1], good + b"x", weights_only, newer):
        path = tmp_path / "bad.unet"
        path.write_bytes(data)
        for source in (path, data):
            with pytest.raises(EngineFileError) as caught:
                Engine(source, **CPU)
            assert str(caught.value)
    with pytest.raises(EngineFileError, match="99"):
        Engine(newer)


@pytest.mark.parametrize("seed", range(3))
def test_bit_flips_give_an_engine_or_an_error(engine_file: Files, seed: int) -> None:
    """Flips in the header are found or harmless; in the weights they change numbers, which must not crash either."""
    good = engine_file("plain").read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    random = np.random.default_rng(seed)
    image = random_image((32, 32))
    for _ in range(60):
        data = bytearray(good)
        position = int(random.integers(header_end if random.random() < 0.8 else len(data)))
        data[position] ^= 1 << int(random.integers(8))
        with contextlib.suppress(ValueError, UnsupportedError, MemoryError):
            Engine(bytes(data), **CPU).segment(image)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("source", None, TypeError),
        ("source", 3, TypeError),
        ("device", "tpu", (ValueError, UnsupportedError)),
        ("device", "cuda:99", (ValueError, UnsupportedError, DeviceError)),
        ("device", None, TypeError),
        ("device", 0, TypeError),
        ("precision", "float64", (ValueError, UnsupportedError)),
        ("precision", None, TypeError),
        ("cpu_isa", "sse9", (ValueError, UnsupportedError)),
        ("cpu_isa", 2, TypeError),
        ("threads", 0, ValueError),
        ("threads", -1, ValueError),
        ("threads", 1.5, TypeError),
        ("threads", True, TypeError),
        ("threads", "2", TypeError),
        ("keep_warm", "0.05", TypeError),
    ],
)
def test_bad_arguments_of_an_engine(engine_file: Files, argument: str, value: Any, error: Any) -> None:
    arguments = {"source": engine_file("plain"), argument: value}
    with pytest.raises(error):
        Engine(arguments.pop("source"), **arguments)


# --- what an engine is ---


def test_properties(engine_file: Files) -> None:
    engine = Engine(engine_file("classes"), threads=2, **CPU)
    assert engine.device == "cpu"
    assert engine.device_reason
    assert engine.precision == "float32"
    assert engine.threads == 2
    assert (engine.channels, engine.classes) == (1, 5)
    assert engine.class_names == ("a", "b", "c", "d", "e")
    assert engine.tile == 32
    assert engine.halo == engine.info.halo
    assert engine.info.halo is not None
    assert engine.info.output == "softmax"
    assert engine.info.name == "classes"
    assert (engine.info.multiple, engine.info.remainder, engine.info.minimum) == (4, 0, 4)
    assert engine.info.ops > 0
    for part in ("classes", "32x32", "1 channel", "5 classes", "float32", "cpu"):
        assert part in repr(engine)


def test_palette(engine_file: Files) -> None:
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7))
    assert Engine(engine_file("classes", palette=palette), **CPU).info.palette == palette


def test_a_network_that_cannot_be_tiled_exactly(engine_file: Files) -> None:
    engine = Engine(engine_file("bilinear_corners"), **CPU)
    assert engine.halo is None
    with pytest.raises((ValueError, UnsupportedError), match=r"(?i)exact"):
        engine.segment(random_image((100, 100)), tiling="exact", tile=64)


def test_paths_of_bytes(engine_file: Files) -> None:
    path = engine_file("plain")
    with os.scandir(os.fsencode(path.parent)) as entries:
        (entry,) = (entry for entry in entries if os.fsdecode(entry) == str(path))
    assert Engine(entry, **CPU).source == str(path)


def test_path_and_bytes_are_the_same(engine_file: Files, grey: Engine) -> None:
    path = engine_file("plain")
    image = random_image((45, 71))
    expected = grey.probability(image)
    data = path.read_bytes()
    for source in (str(path), data, bytearray(data), memoryview(data)):
        assert np.array_equal(Engine(source, **CPU).probability(image), expected)


@pytest.mark.parametrize("from_bytes", [False, True])
def test_pickle_and_copy(engine_file: Files, from_bytes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = engine_file("rgb")
    monkeypatch.chdir(path.parent)
    engine = Engine(path.read_bytes() if from_bytes else path.name, threads=1, **CPU)
    pickled = pickle.dumps(engine)
    assert from_bytes or len(pickled) < 1000  # by path, not by contents
    monkeypatch.chdir(tmp_path)  # where a relative path would mean another file
    image = random_image((32, 40, 3))
    for other in (pickle.loads(pickled), copy.copy(engine), copy.deepcopy(engine)):
        assert other.info == engine.info
        assert np.array_equal(other.probability(image), engine.probability(image))


def test_many_threads_share_an_engine(grey: Engine) -> None:
    images = [random_image((40 + 7 * seed, 50), seed=seed) for seed in range(6)]
    expected = [grey.probability(image) for image in images]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            results = list(pool.map(grey.probability, images))
            assert all(np.array_equal(result, value) for result, value in zip(results, expected, strict=True))


def test_works_after_fork(grey: Engine) -> None:
    image = random_image((40, 50))
    expected = grey.probability(image)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no assert, no pytest: leave at once
        same = np.array_equal(grey.probability(image), expected)
        os.write(writer, b"1" if same else b"0")
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1)
    os.close(reader)
    os.waitpid(child, 0)
    assert answer == b"1"


def test_no_leak(grey: Engine, engine_file: Files) -> None:
    """Opening, segmenting and failing many times must not grow the process."""
    path = engine_file("plain")
    image = random_image((45, 71))

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(times: int) -> None:
        for _ in range(times):
            Engine(path, **CPU).segment(image)
            with pytest.raises(ValueError, match="threshold"):
                grey.segment(image, threshold=2)
            with pytest.raises(EngineFileError):
                Engine(b"no engine at all", **CPU)

    work(20)
    before = resident_bytes()
    work(60)
    assert resident_bytes() - before < 8e6


OPEN = """
import sys
from unet_fast import Engine

def kilobytes(row):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(row))

before = kilobytes("VmRSS")
engine = Engine(sys.argv[1], device="cpu", precision="float32", threads=1)
print(kilobytes("VmHWM") - max(before, kilobytes("VmRSS")))
"""


def test_opening_a_file_does_not_hold_the_weights_twice(tmp_path: Path) -> None:
    path = tmp_path / "wide.unet"
    spec = UNetSpec(base_width=64, depth=3, tile=32)
    freeze(from_spec(spec, random_weights(spec, seed=1)), path)
    result = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < path.stat().st_size / 2
    image = random_image((64, 96))
    from_path, from_bytes = (Engine(data, **CPU) for data in (path, path.read_bytes()))
    assert np.array_equal(from_path.probability(image), from_bytes.probability(image))


def test_pretrained_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = random_image((256, 256))
    first = unet_fast.pretrained_engine(**CPU).probability(image)
    (cached,) = tmp_path.rglob("*.unet")
    stamp = cached.stat().st_mtime_ns
    assert np.array_equal(unet_fast.pretrained_engine(**CPU).probability(image), first)
    assert cached.stat().st_mtime_ns == stamp
    cached.write_bytes(cached.read_bytes()[:1000])  # a damaged file is replaced
    assert np.array_equal(unet_fast.pretrained_engine(**CPU).probability(image), first)
    assert len(list(tmp_path.rglob("*"))) == 2  # the folder and the file, no leftovers
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))  # cannot be a folder
    assert np.array_equal(unet_fast.pretrained_engine(**CPU).probability(image), first)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, unet_fast; unet_fast.pretrained_engine(device='cpu');"
        "print([name for name in ('torch', 'triton', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == "[]"
