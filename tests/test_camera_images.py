"""Images as cameras, ROS and OpenCV hold them, read in place by strides: each gives the bits that Python gives for the
same pixels in plain order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_fast
from tests.capi import LIBRARY, STRIDE_ZERO, Api, image_of, output_in

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}")

HEIGHT, WIDTH = 45, 70  # neither is a size of the networks, so that pixels are mirrored and tiled too
Array = np.ndarray[Any, Any]

# Name, dtype, channels in memory, and which of them the network sees, in order.
ENCODINGS = [
    ("mono8", np.uint8, 1, [0]),
    ("mono16", np.uint16, 1, [0]),
    ("8UC1", np.uint8, 1, [0]),
    ("16UC1", np.uint16, 1, [0]),
    ("32FC1", np.float32, 1, [0]),
    ("rgb8", np.uint8, 3, [0, 1, 2]),
    ("bgr8", np.uint8, 3, [2, 1, 0]),
    ("rgba8", np.uint8, 4, [0, 1, 2]),
    ("bgra8", np.uint8, 4, [2, 1, 0]),
    ("rgb16", np.uint16, 3, [0, 1, 2]),
    ("bgr16", np.uint16, 3, [2, 1, 0]),
    ("rgba16", np.uint16, 4, [0, 1, 2]),
    ("bgra16", np.uint16, 4, [2, 1, 0]),
    ("8UC3", np.uint8, 3, [0, 1, 2]),
    ("16UC3", np.uint16, 3, [0, 1, 2]),
    ("32FC3", np.float32, 3, [0, 1, 2]),
]


def noise(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    if dtype is np.float32:
        return random.random(shape, np.float32)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def expected(path: Path, image: Array, kind: str, **options: Any) -> Array:
    """Python's result for a contiguous image (H, W, C)."""
    engine = unet_fast.Engine(path, device="cpu", precision="float32")
    image = np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
    return getattr(engine, kind)(image, **options)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("encoding", "dtype", "stored", "seen"), ENCODINGS, ids=[row[0] for row in ENCODINGS])
def test_encodings_in_padded_rows(
    encoding: str, dtype: Any, stored: int, seen: list[int], seed: int, engine_file: Callable[..., Path]
) -> None:
    """A region of a larger camera image; mask and probability into a region of the caller's buffers."""
    path = engine_file("plain" if len(seen) == 1 else "rgb")
    random = np.random.default_rng(seed)
    camera = noise(random, (HEIGHT + 9, WIDTH + 13, stored), dtype)
    top, left = random.integers(0, 9), random.integers(0, 13)
    region = camera[top : top + HEIGHT, left : left + WIDTH]
    api = Api()
    image = api.describe(region.ctypes.data, encoding, HEIGHT, WIDTH, camera.strides[0])
    for kind, result_type, poison in (("segment", np.uint8, 7), ("probability", np.float32, np.nan)):
        canvas = np.full((1, HEIGHT + 5, WIDTH + 6), poison, result_type)
        target = canvas[:, 2 : 2 + HEIGHT, 3 : 3 + WIDTH]
        with api.engine(path, device="cpu", precision="float32") as engine:
            api.segment(engine, image, output_in(target))
        assert np.array_equal(target[0], expected(path, region[:, :, seen], kind))
        target[...] = poison
        assert np.array_equal(canvas, np.full_like(canvas, poison), equal_nan=poison is np.nan), "only the region"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("layout", ["planar", "upside down", "mirrored", "transposed", "every other pixel"])
def test_other_layouts(layout: str, dtype: Any, engine_file: Callable[..., Path]) -> None:
    path = engine_file("rgb")
    random = np.random.default_rng(3)
    views = {
        "planar": lambda: np.moveaxis(noise(random, (3, HEIGHT, WIDTH), dtype), 0, -1),
        "upside down": lambda: noise(random, (HEIGHT, WIDTH, 3), dtype)[::-1],
        "mirrored": lambda: noise(random, (HEIGHT, WIDTH, 3), dtype)[:, ::-1],
        "transposed": lambda: np.moveaxis(noise(random, (WIDTH, HEIGHT, 3), dtype), 0, 1),
        "every other pixel": lambda: noise(random, (2 * HEIGHT, 2 * WIDTH, 3), dtype)[::2, ::2],
    }
    pixels = views[layout]()
    result = np.full((1, HEIGHT, WIDTH), np.nan, np.float32)
    api = Api()
    with api.engine(path, device="cpu", precision="float32") as engine:
        api.segment(engine, image_of(pixels[None]), output_in(result))
    assert np.array_equal(result[0], expected(path, pixels, "probability"))


def test_grey_pixels_for_a_colour_network(engine_file: Callable[..., Path]) -> None:
    """UF_STRIDE_ZERO reads the same pixel for each channel, in a pass of its own too."""
    path = engine_file("rgb")
    grey = noise(np.random.default_rng(4), (1, 64, 32, 1), np.uint8)
    image = image_of(grey, channel_stride_bytes=STRIDE_ZERO)
    image.channels = 3
    wanted = expected(path, np.repeat(grey[0], 3, axis=2), "probability", tiling="none")
    result = np.full((1, 64, 32), np.nan, np.float32)
    api = Api()
    with api.engine(path, device="cpu", precision="float32") as engine:
        api.segment(engine, image, output_in(result), tiling=3)
        assert np.array_equal(result[0], wanted)
        result.fill(np.nan)
        with api.context(engine, 1, 64, 32) as context:
            api.enqueue(context, image, output_in(result))
        assert np.array_equal(result[0], wanted)


def test_one_channel_of_a_colour_image_for_a_grey_network(engine_file: Callable[..., Path]) -> None:
    path = engine_file("plain")
    colour = noise(np.random.default_rng(5), (1, HEIGHT, WIDTH, 3), np.uint8)
    green = colour[:, :, :, 1:2]
    result = np.full((1, HEIGHT, WIDTH), np.nan, np.float32)
    api = Api()
    with api.engine(path, device="cpu", precision="float32") as engine:
        api.segment(engine, image_of(green), output_in(result))
    assert np.array_equal(result[0], expected(path, green[0], "probability"))


def test_a_camera_of_twelve_bits(engine_file: Callable[..., Path]) -> None:
    path = engine_file("plain")
    pixels = np.random.default_rng(6).integers(0, 4096, (HEIGHT, WIDTH), np.uint16)
    api = Api()
    image = api.describe(pixels.ctypes.data, "mono16", HEIGHT, WIDTH)
    image.max_value = 4095
    result = np.full((1, HEIGHT, WIDTH), np.nan, np.float32)
    with api.engine(path, device="cpu", precision="float32") as engine:
        api.segment(engine, image, output_in(result))
    assert np.array_equal(result[0], expected(path, pixels[:, :, None], "probability", max_value=4095))
