"""Image files in and out: PNG, JPEG and TIFF (with pages, 8- and 16-bit, float) as NumPy arrays.

    for page in read_pages("stack.tif"):          # (H, W) or (H, W, C), uint8, uint16 or float32
        pixels = to_channels(page, 1)             # grey
        values = to_unit(pixels)                  # float32 in [0, 1]
    write_image("mask.png", mask)

Pillow reads nearly everything; `tifffile`, if it is installed, the TIFFs that Pillow cannot (16-bit colour,
planar channels, odd compressions).
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]

#: File name endings that are taken for images when a folder is listed.
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")

#: Tags of TIFF, the last of EXIF too.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES, _ORIENTATION = 258, 262, 277, 338, 274
#: Values of _PHOTOMETRIC and _EXTRA_SAMPLES.
MIN_IS_WHITE, _UNSPECIFIED, _ALPHA = 0, 0, (1, 2)
#: What brings an image of each orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LUMA = np.array([299, 587, 114])  # ITU-R 601, in thousandths, as Pillow's convert("L")


class ImageError(ValueError):
    """An image file that cannot be read or written, or pixels of a kind that is not supported; names the file."""


def list_images(folder: str | Path, *, zarrs: bool = False) -> list[Path]:
    """The image files directly in `folder`, sorted by name, but for hidden ones; with `zarrs` also folders NAME.zarr.

    `ImageError` if it is no folder or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder")
    paths = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")  # macOS leaves "._NAME" beside each file on foreign disks
        and ((path.suffix.lower() in SUFFIXES and path.is_file()) or (zarrs and path.suffix.lower() == ".zarr"))
    )
    if not paths:
        raise ImageError(f"{folder} holds no image; looked for files ending in {', '.join(SUFFIXES)}")
    return paths


def read_pages(path: str | Path, *, palette_indices: bool = False) -> list[Pixels]:
    """All pages of an image file; a list of one for everything but multi-page TIFFs.

    Each page is (H, W), or (H, W, C) with C from 2 to 4, of uint8, uint16 or float32.  A palette is expanded to RGB, or
    with `palette_indices` left as the (H, W) indices.  One-bit images become 0 and 255, the alpha of a grey image is
    dropped, values that count down from white are turned round, an orientation noted in the file is applied.  A PNG of
    16 bits with colour or alpha comes as 8 bits: Pillow reads no more.

    `ImageError` where the file is missing, broken, too large, or of a kind not described here.
    """
    path = Path(path)
    try:
        with _open(path) as image:
            if not (image.format == "TIFF" and _is_for_tifffile(image)):
                pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                return [_page_from_pillow(image, page, path, palette_indices) for page in range(pages)]
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image file") from None
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise ImageError(
                f"{path}: too many pixels for this format; save it as TIFF, of which `unet-fast segment --large` reads "
                "a tile at a time"
            ) from None
    except Exception as error:  # the decoders of Pillow raise whatever a broken file leads them to
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise ImageError(f"{path}: unreadable image ({error})") from error
    return _pages_from_tifffile(path)


def _open(path: Path) -> Image.Image:
    """The image, unread.  Pillow warns of half as many pixels as it refuses, which micrographs may well have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _is_for_tifffile(image: Image.Image) -> bool:
    """True for TIFFs of several samples that Pillow refuses, cuts to 8 bits, or leaves out: more channels."""
    tags: Any = getattr(image, "tag_v2", {})
    samples, extra = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(_EXTRA_SAMPLES, ())
    return samples > 1 and (max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8 or (samples <= 4 and _UNSPECIFIED in extra))


def _page_from_pillow(image: Image.Image, page: int, path: Path, palette_indices: bool) -> Pixels:
    if page:
        image.seek(page)
    image.load()  # which turns a TIFF
    # `ImageOps.exif_transpose` would write the other tags anew, and fail where one of them is malformed.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    mode = upright.mode
    if mode in ("P", "PA") and not palette_indices:
        upright = upright.convert("RGB")
    elif mode == "LA":
        upright = upright.getchannel("L")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa"):
        upright = upright.convert("RGB")
    elif mode == "PA":
        upright = upright.getchannel("P")
    pixels = np.array(upright)
    tags: Any = getattr(image, "tag_v2", {})
    if mode == "I;16" and tags.get(_PHOTOMETRIC) == MIN_IS_WHITE:  # Pillow does so for fewer bits
        pixels = turned_round(pixels, max(tags[_BITS_PER_SAMPLE]))
    return as_supported(pixels, path)


def turned_round(pixels: Pixels, bits: int) -> Pixels:
    """Pixels that count down from white as pixels that count up from black."""
    return pixels ^ pixels.dtype.type(2**bits - 1)


def _pages_from_tifffile(path: Path) -> list[Pixels]:
    try:
        import tifffile
    except ImportError:
        raise ImageError(f"{path}: Pillow cannot read this TIFF; `pip install tifffile` and try again") from None
    pages = []
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                pixels = page.asarray()
                if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[2]:
                    pixels = np.moveaxis(pixels, 0, 2)  # planar: channels first in the file
                kind: Any = page.keyframe
                if pixels.ndim == 3 and pixels.shape[2] == 2 and set(kind.extrasamples) & set(_ALPHA):
                    pixels = pixels[:, :, 0]  # the other is alpha
                if kind.photometric == MIN_IS_WHITE and pixels.dtype.kind in "bu":
                    pixels = turned_round(pixels, kind.bitspersample)
                pages.append(as_supported(pixels, path))
    except ImageError:
        raise
    except Exception as error:  # the decoders of tifffile raise whatever a broken file leads them to
        raise ImageError(f"{path}: unreadable TIFF ({error})") from error
    if not pages:
        raise ImageError(f"{path}: a TIFF without pages")
    return pages


def as_supported(pixels: Pixels, path: str | Path) -> Pixels:
    """`pixels` as contiguous native uint8, uint16 or float32 without changing a value, or `ImageError` with `path`."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and not 1 <= pixels.shape[2] <= 4) or 0 in pixels.shape:
        raise ImageError(f"{path}: an image must be (H, W) or (H, W, 1 to 4), this is {pixels.shape}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    kind = pixels.dtype.kind
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        return np.ascontiguousarray(pixels, dtype=np.float32)
    if kind in "iu":
        if pixels.dtype == np.uint8:
            return np.ascontiguousarray(pixels)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            raise ImageError(f"{path}: whole numbers must be in 0..65535, this holds {low}..{high}; save it as 16-bit")
        return np.ascontiguousarray(pixels, dtype=np.uint16)
    raise ImageError(f"{path}: pixels of type {pixels.dtype} are not supported (uint8, uint16, float32 are)")


def to_channels(pixels: Pixels, channels: int, path: str | Path | None = None) -> Pixels:
    """(H, W[, C]) -> (H, W, channels) of the same type.

    Grey is repeated, colour becomes grey by the ITU-R 601 weights, an alpha channel is dropped where `channels` is 1
    or 3.  `ImageError`, which names `path` if given, for any other pair of counts.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have == 1:
        return np.repeat(pixels, channels, axis=2)
    if have == 4 and channels in (1, 3):
        pixels, have = pixels[:, :, :3], 3
    if have == 3 and channels == 1:
        if pixels.dtype.kind == "f":
            return (pixels @ (LUMA / 1000).astype(pixels.dtype))[:, :, None]
        return ((pixels.astype(np.int64) @ LUMA + 500) // 1000).astype(pixels.dtype)[:, :, None]
    if have == channels:
        return pixels
    raise ImageError(
        f"{'' if path is None else f'{path}: '}an image of {have} channels cannot be turned into {channels}"
    )


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """Pixels as float32 in [0, 1]: uint8 over 255, uint16 over 65535, float32 as it is.

    `ImageError` for float pixels outside [0, 1] or not finite, and for other types.
    """
    if pixels.dtype == np.uint8 or pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if pixels.dtype != np.float32:
        raise ImageError(f"pixels must be uint8, uint16 or float32, got {pixels.dtype}")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN too
        raise ImageError(f"float pixels must be in [0, 1], these are in [{pixels.min():g}, {pixels.max():g}]")
    return pixels


def mirrored(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The pixels of an axis of `size` that stand at `positions`, mirrored without repeating the edge."""
    if size == 1:
        return np.zeros_like(positions)
    within = positions % (2 * (size - 1))
    return np.where(within < size, within, 2 * (size - 1) - within)


def write_image(path: str | Path, pixels: Pixels | Sequence[Pixels]) -> None:
    """Write (H, W) or (H, W, 3|4) pixels; the format follows from the ending of `path`.

    uint8 goes anywhere, uint16 into PNG (grey) and TIFF, float32 and int32 (grey) into TIFF.  A list of arrays makes a
    TIFF of as many pages.  The file appears whole or not at all.  `ImageError` where the format cannot hold the pixels;
    `OSError` (disk full, no permission) as it comes.
    """
    path = Path(path)
    pages = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}")
    if not pages or (len(pages) > 1 and not is_tiff):
        raise ImageError(f"{path}: {len(pages)} pages given; a TIFF takes one or more, other formats exactly one")
    for page in pages:
        grey_png = page.ndim == 2 and path.suffix.lower() == ".png"
        accepted = {"uint8"} | ({"uint16"} if grey_png or is_tiff else set()) | ({"float32"} if is_tiff else set())
        accepted |= {"int32"} if is_tiff and page.ndim == 2 else set()
        if str(page.dtype) not in accepted:
            raise ImageError(f"{path}: this format does not take {page.dtype} pixels of shape {page.shape}")
        if 0 in page.shape or not (page.ndim == 2 or (page.ndim == 3 and page.shape[2] in (3, 4))):
            raise ImageError(f"{path}: pixels must be (H, W) or (H, W, 3 or 4), got {page.shape}")
    deep_colour = any(page.ndim == 3 and page.dtype != np.uint8 for page in pages)
    with write_beside(path) as temporary:
        if deep_colour:
            _write_with_tifffile(temporary, pages)
            return
        first, *rest = [Image.fromarray(np.ascontiguousarray(page)) for page in pages]
        options: dict[str, Any] = {"compression": "tiff_deflate"} if is_tiff else {}
        if rest:
            options |= {"save_all": True, "append_images": rest}
        if path.suffix.lower() in (".jpg", ".jpeg"):
            options["quality"] = 95
        first.save(temporary, format=Image.registered_extensions()[path.suffix.lower()], **options)


def _write_with_tifffile(path: Path, pages: list[Pixels]) -> None:
    try:
        import tifffile
    except ImportError:
        raise ImageError(f"{path}: colour of more than 8 bits needs tifffile; `pip install tifffile`") from None
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, photometric="rgb", contiguous=False)


@contextmanager
def write_beside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; at the end flush it to disk and rename it to `path`.

    If the body raises, the temporary file is removed and an older `path` stays as it was.  An `OSError` about the
    temporary file names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.part")  # no two threads' is the same
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or os.fsdecode(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
