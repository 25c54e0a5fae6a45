"""Images that need not fit into memory: TIFF, OME-TIFF, Zarr and OME-Zarr, read and written in windows.

    image = open_image("slide.ome.tif", channel="DAPI")
    pixels = image.window(0, top=4096, left=0, height=512, width=512)

TIFFs need tifffile (`pip install unet_fast[tiff]`), Zarr and compressed TIFFs zarr (`pip install unet_fast[large]`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import MIN_IS_WHITE, SUFFIXES, ImageError, as_supported, mirrored, turned_round
from .objects import need

_TIFF = (".tif", ".tiff")
ENDINGS = (*_TIFF, ".zarr")

#: Pixels of a result's chunk along each axis, and the most that the coarsest level of a pyramid has.
_CHUNK = 1024


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr: by its name, or by what lies in it."""
    marks = (".zarray", ".zgroup", "zarr.json")
    return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / mark).exists() for mark in marks))


class FileArray:
    """An array in a file, uncompressed and in C order.

    It is mapped anew for each access, so that its pages never count as memory that this process needs.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> None:
        self.path, self.shape, self.dtype, self._offset = path, shape, np.dtype(dtype), offset
        self.ndim = len(shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return np.array(np.memmap(self.path, self.dtype, "r", self._offset, self.shape)[index])

    def __setitem__(self, index: Any, pixels: NDArray[Any]) -> None:
        """For pixels that were written before; a mapping has no way to tell of a full disk."""
        np.memmap(self.path, self.dtype, "r+", self._offset, self.shape)[index] = pixels

    def write_rows(self, plane: int, top: int, rows: NDArray[Any]) -> None:
        """Whole rows from `top` of the plane of that number, as if all axes before the last two were one."""
        height, width = self.shape[-2:]
        with open(self.path, "r+b") as file:
            file.seek(self._offset + (plane * height + top) * width * self.dtype.itemsize)
            file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())


class Image:
    """Planes of the same height and width: `axes` beside rows and columns are those of time and z that were not chosen.

    axes    letters of "tz" with the size of each, in the order of the planes.
    dtype   of the pixels in the file.
    """

    def __init__(self, array: Any, order: str, fixed: dict[str, int], path: Path, white_bits: int = 0) -> None:
        """`white_bits`: of pixels that count down from white; 0: they count up from black."""
        self._array, self._order, self._fixed, self.path, self._white_bits = array, order, fixed, path, white_bits
        self.dtype = np.dtype(array.dtype)
        sizes = dict(zip(order, array.shape, strict=True))
        self.height, self.width = sizes["y"], sizes["x"]
        self.axes = {axis: size for axis, size in sizes.items() if axis not in "cyx" and axis not in fixed}
        #: Where each plane lies along `axes`.
        self.planes = [
            dict(zip(self.axes, at, strict=True)) for at in itertools.product(*map(range, self.axes.values()))
        ]

    def window(self, plane: int, *, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width[, C]) uint8, uint16 or float32 from (top, left) of a plane, mirrored outside the image."""
        rows, columns = _inside(top, height, self.height), _inside(left, width, self.width)
        place = {"y": rows, "x": columns, **self._fixed, **self.planes[plane]}
        try:
            pixels = np.asarray(self._array[tuple(place.get(axis, slice(None)) for axis in self._order)])
        except Exception as error:  # each kind of file and store has exceptions of its own
            raise ImageError(f"{self.path}: cannot be read ({type(error).__name__}: {error})") from error
        left_over = [axis for axis in self._order if isinstance(place.get(axis, slice(None)), slice)]
        pixels = np.transpose(pixels, [left_over.index(axis) for axis in "yxc" if axis in left_over])
        ys = mirrored(np.arange(top, top + height), self.height) - rows.start
        xs = mirrored(np.arange(left, left + width), self.width) - columns.start
        pixels = pixels[ys][:, xs]
        return as_supported(turned_round(pixels, self._white_bits) if self._white_bits else pixels, self.path)


def _inside(start: int, length: int, size: int) -> slice:
    """The least range of pixels that a mirrored window needs."""
    positions = mirrored(np.arange(start, start + length), size)
    return slice(int(positions.min()), int(positions.max()) + 1)


def open_image(
    path: str | os.PathLike[str], *, channel: str | int | None = None, time: int | None = None, z: int | None = None
) -> Image:
    """The image in a TIFF, OME-TIFF, Zarr array (t, c, z, y, x; of three axes c, y, x) or OME-Zarr at full resolution.

    channel  by name (OME) or index from 0; None: all of them, 4 at most.
    time, z  of a series or stack, from 0; None: all of them.
    `ImageError` for what cannot be read, `ValueError` for a channel or index that does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() not in _TIFF:
        raise ImageError(f"{path}: only TIFFs and Zarrs are read tile by tile; leave --large out, or save it as TIFF")
    white_bits = 0
    if path.suffix.lower() in _TIFF:
        array, order, names, white_bits = _open_tiff(path)
    else:
        array, order, names = _open_zarr(path)
    sizes = dict(zip(order, array.shape, strict=True))
    if len(sizes) != len(order) or not {"y", "x"} <= sizes.keys() <= set("tczyx"):
        raise ImageError(f"{path}: axes must be of t, c, z, y and x, each once, these are {order!r}")
    if isinstance(channel, str):
        if channel not in names:
            raise ValueError(f"channel {channel!r} is not in {path}; it has {', '.join(names) or 'no names'}")
        channel = names.index(channel)
    if channel is None and sizes.get("c", 1) > 4:
        raise ValueError(f"{path} has {sizes['c']} channels; say which: {', '.join(names) or 'a number from 0'}")
    fixed: dict[str, int] = {}
    for axis, name, chosen in (("c", "channel", channel), ("t", "time", time), ("z", "z", z)):
        if chosen is None:
            continue
        if not 0 <= chosen < sizes.get(axis, 1):
            raise ValueError(f"{name} is {chosen}, but {path} has 0 to {sizes.get(axis, 1) - 1}")
        if axis in sizes:
            fixed[axis] = chosen
    return Image(array, order, fixed, path, white_bits)


def _open_tiff(path: Path) -> tuple[Any, str, Sequence[str], int]:
    """Array, its axes as letters of "tczyx", names of channels, bits of pixels that count down from white (else 0)."""
    tifffile = need("tifffile", "tiff")
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            if len(file.series) > 1 and series.kind in ("generic", "uniform", "shaped"):
                raise ImageError(f"{path}: its pages differ in size or type; a large image has pages of one kind")
            order = series.axes.lower().replace("s", "c").replace("i", "t").replace("q", "t")
            names = _ome_channel_names(file.ome_metadata)
            shape, dtype, offset = series.shape, file.byteorder + series.dtype.char, series.dataoffset
            first = series.keyframe
            white_bits = first.bitspersample if first.photometric == MIN_IS_WHITE and series.dtype.kind in "bu" else 0
    except ImageError:
        raise
    except Exception as error:  # the decoders of tifffile raise whatever a broken file leads them to
        raise ImageError(f"{path}: unreadable TIFF ({error})") from error
    if offset is not None:
        array = FileArray(path, shape, dtype, offset)
        if offset + int(np.prod(shape, dtype=np.int64)) * array.dtype.itemsize > path.stat().st_size:
            raise ImageError(f"{path}: unreadable TIFF (it ends before its pixels do)")
        return array, order, names, white_bits
    # What is compressed or in tiles is decoded piece by piece, which tifffile offers as a Zarr store.
    zarr = need("zarr", "large")
    array = zarr.open_array(tifffile.imread(path, series=0, level=0, aszarr=True), mode="r")
    return array, order, names, white_bits


def _ome_channel_names(document: str | None) -> list[str]:
    if not document:
        return []
    images = need("tifffile", "tiff").xml2dict(document)["OME"]["Image"]
    channels = (images[0] if isinstance(images, list | tuple) else images)["Pixels"].get("Channel", [])
    return [str(one.get("Name", "")) for one in (channels if isinstance(channels, list | tuple) else [channels])]


def _open_zarr(path: Path) -> tuple[Any, str, Sequence[str]]:
    zarr = need("zarr", "large")
    try:
        node = zarr.open(str(path), mode="r")
    except Exception as error:  # each kind of store has exceptions of its own
        raise ImageError(f"{path}: no Zarr array or group ({error})") from error
    if isinstance(node, zarr.Array):
        if not 2 <= node.ndim <= 5:
            raise ImageError(f"{path}: a Zarr array must have 2 to 5 axes (t, c, z, y, x), this is {node.shape}")
        return node, "cyx" if node.ndim == 3 else "tczyx"[5 - node.ndim :], []
    attributes = dict(node.attrs)
    attributes = attributes.get("ome", attributes)  # OME-NGFF 0.5, else 0.4
    if "multiscales" not in attributes:
        raise ImageError(f"{path}: a Zarr group without OME metadata (multiscales); name the array in it")
    scales = attributes["multiscales"][0]
    order = "".join(axis["name"].lower()[:1] for axis in scales["axes"])
    names = [str(one.get("label", "")) for one in attributes.get("omero", {}).get("channels", [])]
    return node[scales["datasets"][0]["path"]], order, names


class Result:
    """Planes of one value per pixel in a file of its own: uncompressed TIFF, BigTIFF from 4 GB, or OME-Zarr (NGFF 0.4).

    fresh   True: it is created; False: it is there and goes on being written.  `ImageError` where what is there has
            another shape or type.
    """

    def __init__(self, path: Path, image: Image, dtype: Any, *, fresh: bool) -> None:
        self.path = path
        self._axes = "".join(image.axes)
        self._shape = (*image.axes.values(), image.height, image.width)
        self._planes = [tuple(at.values()) for at in image.planes]
        self._array: Any = (self._create if fresh else self._reopen)(np.dtype(dtype))

    def _create(self, dtype: np.dtype[Any]) -> Any:
        if self.path.suffix.lower() not in _TIFF:
            self._group = need("zarr", "large").open_group(str(self.path), mode="w", zarr_format=2)
            return self._level(0, self._shape, dtype)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        big = int(np.prod(self._shape, dtype=np.int64)) * dtype.itemsize >= 2**32 - 2**25
        axes = {"axes": (self._axes + "yx").upper()}
        need("tifffile", "tiff").imwrite(
            self.path, shape=self._shape, dtype=dtype, bigtiff=big, metadata=axes, photometric="minisblack"
        )
        return self._reopen(dtype)

    def _reopen(self, dtype: np.dtype[Any]) -> Any:
        try:
            if self.path.suffix.lower() in _TIFF:
                with need("tifffile", "tiff").TiffFile(self.path) as file:
                    found = file.series[0]
                if found.dataoffset is None:
                    raise ValueError("its pixels are compressed")
                array: Any = FileArray(self.path, self._shape, dtype, found.dataoffset)
            else:
                self._group = need("zarr", "large").open_group(str(self.path), mode="r+", zarr_format=2)
                array = found = self._group["0"]
        except Exception as error:  # each kind of file and store has exceptions of its own
            raise ImageError(f"{self.path}: no result of ours ({type(error).__name__}: {error}); remove it") from error
        # Axes of one element may be missing.
        if [n for n in found.shape if n > 1] != [n for n in self._shape if n > 1] or found.dtype != dtype:
            raise ImageError(f"{self.path}: not of this image ({found.dtype} {found.shape}); remove it")
        return array

    def _level(self, level: int, shape: tuple[int, ...], dtype: Any) -> Any:
        chunks = tuple(1 if axis < len(shape) - 2 else min(_CHUNK, size) for axis, size in enumerate(shape))
        return self._group.create_array(
            str(level), shape=shape, chunks=chunks, dtype=dtype, fill_value=0, overwrite=True,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )  # fmt: skip

    def write_rows(self, plane: int, top: int, rows: NDArray[Any]) -> None:
        if isinstance(self._array, FileArray):
            self._array.write_rows(plane, top, rows)
        else:
            self._array[(*self._planes[plane], slice(top, top + len(rows)))] = rows

    def read_rows(self, plane: int, top: int, bottom: int) -> NDArray[Any]:
        return np.asarray(self._array[(*self._planes[plane], slice(top, bottom))])

    def finish(self) -> None:
        """Gives an OME-Zarr its levels, each with every second pixel of the one before, and its metadata.

        Classes and labels have no means, so pixels are left out.
        """
        if isinstance(self._array, FileArray):
            return
        finer, levels = self._array, 1
        while max(finer.shape[-2:]) > _CHUNK:
            height, width = (-(-side // 2) for side in finer.shape[-2:])
            coarser = self._level(levels, (*finer.shape[:-2], height, width), finer.dtype)
            for plane in self._planes:
                for top in range(0, height, _CHUNK // 2):
                    rows = finer[(*plane, slice(2 * top, 2 * top + _CHUNK))]
                    coarser[(*plane, slice(top, top + _CHUNK // 2))] = rows[::2, ::2]
            finer, levels = coarser, levels + 1
        outer = [1.0] * len(self._axes)
        kinds = {"t": "time"}
        self._group.attrs["multiscales"] = [
            {
                "version": "0.4",
                "name": self.path.stem,
                "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in self._axes + "yx"],
                "datasets": [
                    {
                        "path": str(n),
                        "coordinateTransformations": [{"type": "scale", "scale": [*outer, 2.0**n, 2.0**n]}],
                    }
                    for n in range(levels)
                ],
            }
        ]
