"""Image files: every format that users have, read without changing a value, written whole or not at all."""

from __future__ import annotations

import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from unet_fast.images import ImageError, list_images, read_pages, to_channels, to_unit, write_beside, write_image


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.mark.parametrize(
    ("name", "dtype", "channels"),
    [
        ("a.png", np.uint8, 0),
        ("a.png", np.uint8, 3),
        ("a.png", np.uint8, 4),
        ("a.png", np.uint16, 0),
        ("a.tif", np.uint8, 0),
        ("a.tiff", np.uint8, 3),
        ("a.tif", np.uint16, 0),
        ("a.tif", np.uint16, 3),
        ("a.tif", np.float32, 0),
        ("a.bmp", np.uint8, 3),
    ],
)
def test_what_is_written_is_read(
    tmp_path: Path, random: np.random.Generator, name: str, dtype: type, channels: int
) -> None:
    pixels = random.integers(0, 250, (23, 31, channels) if channels else (23, 31)).astype(dtype)
    if dtype == np.uint16:
        pixels *= 256
        pixels += 77
    write_image(tmp_path / name, pixels)
    (page,) = read_pages(tmp_path / name)
    assert page.dtype == dtype
    assert np.array_equal(page, pixels)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_jpeg_is_close(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    write_image(tmp_path / "a.jpg", pixels)
    (page,) = read_pages(tmp_path / "a.jpg")
    assert page.shape == (64, 64)
    assert np.abs(page.astype(int) - pixels).max() < 12


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, value of 4 bytes)."""
    fields = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + len(entries).to_bytes(2, "big") + fields + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_an_orientation_is_applied(tmp_path: Path, random: np.random.Generator, orientation: int, ending: str) -> None:
    image = Image.fromarray(random.integers(0, 255, (16, 24)).astype(np.uint8))
    path = tmp_path / f"a.{ending}"
    image.save(path, exif=exif((274, 3, 1, orientation.to_bytes(2, "big") + bytes(2))))
    with Image.open(path) as noted:
        expected = np.array(ImageOps.exif_transpose(noted))
    assert np.array_equal(read_pages(path)[0], expected)


@pytest.mark.parametrize("malformed", ["a resolution that is a string", "a width of two bytes"])
def test_malformed_tags_beside_an_orientation_do_no_harm(tmp_path: Path, malformed: str) -> None:
    entry = (282, 2, 3, b"72\0\0") if "resolution" in malformed else (256, 1, 2, b"\1\2\0\0")
    Image.new("L", (30, 20)).save(tmp_path / "a.jpg", exif=exif((274, 3, 1, b"\0\6\0\0"), entry))
    assert read_pages(tmp_path / "a.jpg")[0].shape == (30, 20)


def test_whatever_pillow_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")

    def fail(image: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(ImageError, match=r"a\.jpg: unreadable image \(unpack"):
        read_pages(tmp_path / "a.jpg")


def test_images_of_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((30, 50), np.uint8)
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pages(tmp_path / "a.png")[0].shape == pixels.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # twice as many it refuses
    assert read_pages(tmp_path / "a.tif")[0].shape == pixels.shape
    with pytest.raises(ImageError, match=r"a\.png: too many pixels.*save it as TIFF.*--large"):
        read_pages(tmp_path / "a.png")


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", "b.zarr"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    assert list_images(tmp_path, zarrs=True) == [tmp_path / "a.png", tmp_path / "b.zarr"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_second_sample_is_alpha_or_a_channel(tmp_path: Path, random: np.random.Generator, dtype: type) -> None:
    pixels = random.integers(0, 255, (7, 9, 2)).astype(dtype)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"], **options)
    assert np.array_equal(read_pages(tmp_path / "a.tif")[0], pixels[:, :, 0])
    tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=["unspecified"], **options)
    assert np.array_equal(read_pages(tmp_path / "a.tif")[0], pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"extrasamples": ["unassalpha"]}])
def test_values_that_count_down_from_white(tmp_path: Path, dtype: type, options: dict[str, Any]) -> None:
    white = np.iinfo(dtype).max
    pixels = np.array([[0, 1], [white, 7]], dtype)
    stored = np.stack([pixels] * 2, axis=2) if options else pixels
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", planarconfig="contig", **options)
    assert read_pages(tmp_path / "a.tif")[0].tolist() == [[white, white - 1], [0, white - 7]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_stacks(tmp_path: Path, random: np.random.Generator, dtype: type) -> None:
    pages = [random.integers(0, 255, (9, 11)).astype(dtype) for _ in range(3)]
    write_image(tmp_path / "stack.tif", pages)
    for read, written in zip(read_pages(tmp_path / "stack.tif"), pages, strict=True):
        assert read.dtype == dtype
        assert np.array_equal(read, written)


def test_palette_one_bit_and_grey_with_alpha(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "palette.png")
    (colours,) = read_pages(tmp_path / "palette.png")
    assert colours.tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 0, 255], [255, 0, 0]]]
    (kept,) = read_pages(tmp_path / "palette.png", palette_indices=True)
    assert np.array_equal(kept, indices)

    Image.fromarray(indices > 0).save(tmp_path / "bit.png")
    assert read_pages(tmp_path / "bit.png")[0].tolist() == [[0, 255], [255, 255]]

    Image.merge("LA", [Image.fromarray(indices), Image.new("L", (2, 2), 9)]).save(tmp_path / "alpha.png")
    assert np.array_equal(read_pages(tmp_path / "alpha.png")[0], indices)


def test_tiffs_that_pillow_cannot_read(tmp_path: Path, random: np.random.Generator) -> None:
    deep = random.integers(0, 65535, (7, 9, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_pages(tmp_path / "planar.tif")[0], deep)
    big_endian = random.integers(0, 65535, (7, 9)).astype(">u2")
    tifffile.imwrite(tmp_path / "big.tif", big_endian, byteorder=">")
    (page,) = read_pages(tmp_path / "big.tif")
    assert np.array_equal(page, big_endian)
    assert page.dtype == np.uint16
    tifffile.imwrite(tmp_path / "long.tif", np.full((4, 4), 60000, dtype=np.uint32))
    assert read_pages(tmp_path / "long.tif")[0].dtype == np.uint16


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_pages(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_pages(tmp_path)
    for name in ("text.png", "text.tif", "empty.jpg"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"this is no image at all")
        with pytest.raises(ImageError, match=name):
            read_pages(tmp_path / name)
    for name in ("cut.png", "cut.tif", "cut.jpg"):
        write_image(tmp_path / name, np.random.default_rng(1).integers(0, 255, (64, 64)).astype(np.uint8))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError, match=name):
            read_pages(tmp_path / name)
    tifffile.imwrite(tmp_path / "wide.tif", np.full((4, 4), 70000, dtype=np.uint32))
    with pytest.raises(ImageError, match=r"0\.\.65535, this holds 70000"):
        read_pages(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match="not a folder"):
        list_images(tmp_path / "nothing")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        list_images(tmp_path / "bare")


def test_pixels_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), dtype=np.uint8)
    for name, pixels in (
        ("a.jpg", grey.astype(np.uint16)),
        ("a.png", grey.astype(np.float32)),
        ("a.png", np.zeros((4, 4, 3), np.uint16)),
        ("a.png", grey.astype(np.int64)),
        ("a.png", np.zeros((0, 4), np.uint8)),
        ("a.png", np.zeros((4, 4, 2), np.uint8)),
        ("a.png", [grey, grey]),
        ("a.tif", []),
        ("a.gif", grey),
    ):
        with pytest.raises(ImageError, match=r"a\."):
            write_image(tmp_path / name, pixels)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")

    def fail() -> None:
        with write_beside(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "mask.png"
    with pytest.raises(FileNotFoundError) as caught:
        write_image(path, np.zeros((4, 4), np.uint8))
    assert caught.value.filename == str(path)
    assert ".part" not in str(caught.value)


def test_threads_that_write_the_same_file(tmp_path: Path) -> None:
    """Two threads that freeze the shipped network into the cache, say: the file is one's or the other's, whole."""
    path = tmp_path / "file"
    both = threading.Barrier(2, timeout=10)

    def write(content: bytes) -> None:
        with write_beside(path) as temporary:
            both.wait()
            temporary.write_bytes(content)
            both.wait()

    contents = [bytes([number]) * (number * 1000) for number in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_channels_and_units() -> None:
    colour = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], dtype=np.uint8)
    as_pillow = np.array(Image.fromarray(colour).convert("L"))
    assert np.abs(to_channels(colour, 1)[:, :, 0].astype(int) - as_pillow).max() <= 1
    grey = np.array([[1, 2]], dtype=np.uint16)
    assert to_channels(grey, 3).tolist() == [[[1, 1, 1], [2, 2, 2]]]
    with_alpha = np.dstack([colour, np.full((1, 4), 9, np.uint8)])
    assert np.array_equal(to_channels(with_alpha, 3), colour)
    assert np.array_equal(to_channels(with_alpha, 1), to_channels(colour, 1))
    with pytest.raises(ImageError, match="3 channels cannot be turned into 2"):
        to_channels(colour, 2)
    with pytest.raises(ImageError, match=r"a\.png: an image of 3 channels"):
        to_channels(colour, 2, "a.png")

    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [0, 1]
    assert to_unit(np.array([0, 65535], np.uint16)).tolist() == [0, 1]
    for bad in (np.array([1.5], np.float32), np.array([np.nan], np.float32), np.array([1], np.int32)):
        with pytest.raises(ImageError, match="must be"):
            to_unit(bad)
