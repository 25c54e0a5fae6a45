"""Images larger than memory: read, segmented and written tile by tile.

    segment_large(engine, "slide.tif", "slide-mask.tif")
    segment_large(engine, "slide.zarr", "mask.zarr", channel="DAPI", time=3)

The result is that of `engine.segment(image, tiling="exact")`, bit for bit, whatever the size of the image.  Memory
holds one band of tiles: `band_bytes` tells how much.  A run that was stopped goes on where it was.

TIFFs are read and written as memory maps through tifffile (`pip install unet_fast[tiff]`), Zarr through zarr
(`pip install unet_fast[large]`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .engine import Engine
from .errors import UnsupportedError
from .images import ImageError, to_channels, write_beside
from .objects import need

_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Span:
    """A tile along one axis: it begins at `origin` of the result, of which it gives `begin` to `end`, excluded."""

    origin: int
    begin: int
    end: int


@dataclass(frozen=True)
class Tiles:
    """The tiles along one axis, each `side` pixels of image wide."""

    side: int
    spans: tuple[Span, ...]


def exact_tiles(engine: Engine, size: int, largest: int | None = None) -> Tiles:
    """The tiles that `tiling="exact"` lays over `size` pixels; `largest` as its `tile`.

    The slow form of `exact_axis` in csrc/tiler.cpp, where the reasons are.
    """
    info = engine.info

    def next_legal(least: int) -> int:
        least = max(least, info.minimum)
        return least + (info.remainder - least) % info.multiple

    if largest is None:
        most = max(1024, 4 * (info.halo or 0))
        above = next_legal(most)
        largest = above if above in (most, info.minimum) else above - info.multiple
    margin = info.margin
    whole = next_legal(size + 2 * margin)
    if whole <= largest:
        return Tiles(whole, (Span(0, 0, size),))
    if info.halo is None:
        raise UnsupportedError(
            f"{info.name!r} cannot be tiled exactly, and a side of {size} pixels does not fit into a tile of {largest}"
        )
    edge = max(info.halo - margin, 0)
    lost = 2 * (edge + margin)
    grid = 4 * info.multiple if largest - lost >= 8 * info.multiple else info.multiple
    largest_step = (largest - lost - (grid - info.multiple)) // grid * grid
    if largest_step <= 0:
        raise ValueError(
            f"tile {largest} is too small for exact tiling: this network needs at least "
            f"{next_legal(lost + info.multiple)}"
        )
    inner = whole - 2 * margin - 2 * edge
    most = -(-inner // largest_step)
    step = -(-inner // (most * grid)) * grid
    side = next_legal(step + lost)
    side += (whole - side) % grid
    core = side - 2 * margin
    last = whole - side
    count = 1 + -(-min(last, size - (core - edge)) // step)
    spans: list[Span] = []
    for number in range(count):
        origin = min(number * step, last)
        end = size if number == count - 1 else min(origin + core - edge, size)
        spans.append(Span(origin, spans[-1].end if spans else 0, end))
    return Tiles(side, tuple(spans))


class _Source:
    """The pixels of one image, (H, W[, C]), read window by window."""

    def __init__(self, array: Any, axes: str, fixed: dict[str, int], path: str) -> None:
        self._array, self._axes, self._fixed = array, axes, fixed
        self.path = path
        self.dtype = np.dtype(array.dtype)
        self.height = array.shape[axes.index("y")]
        self.width = array.shape[axes.index("x")]

    def window(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """(height, width[, C]) pixels from (top, left), mirrored outside the image."""
        rows, columns = _inside(top, height, self.height), _inside(left, width, self.width)
        index = tuple(
            {"y": rows, "x": columns}.get(axis, self._fixed.get(axis, slice(None))) for axis in self._axes
        )
        pixels = np.asarray(self._array[index])
        left_over = [axis for axis in self._axes if axis not in self._fixed]
        pixels = np.transpose(pixels, [left_over.index(axis) for axis in "yxc" if axis in left_over])
        ys = _mirrored(np.arange(top, top + height), self.height) - rows.start
        xs = _mirrored(np.arange(left, left + width), self.width) - columns.start
        return np.ascontiguousarray(pixels[ys][:, xs])


def _mirrored(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The pixels of an axis that stand at `positions`, mirrored without repeating the edge."""
    if size == 1:
        return np.zeros_like(positions)
    within = positions % (2 * (size - 1))
    return np.where(within < size, within, 2 * (size - 1) - within)


def _inside(start: int, length: int, size: int) -> slice:
    """The least range of pixels that a mirrored window needs."""
    positions = _mirrored(np.arange(start, start + length), size)
    return slice(int(positions.min()), int(positions.max()) + 1)


def open_image(path: str | os.PathLike[str], *, channel: str | int | None = None, time: int = 0, z: int = 0) -> _Source:
    """The image in a TIFF, OME-TIFF, Zarr array or OME-Zarr.

    channel  by name (OME) or index from 0; None: all of them.
    time, z  of a series or stack, from 0.
    `ImageError` for what cannot be read, `ValueError` for a channel or index that does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    array, axes, names = _open_tiff(path) if path.suffix.lower() in _TIFF else _open_zarr(path)
    fixed: dict[str, int] = {}
    for axis, size in zip(axes, array.shape, strict=True):
        wanted: str | int | None = {"t": time, "z": z, "c": channel}.get(axis, 0)
        if axis in "yx" or wanted is None:
            continue
        if isinstance(wanted, str):
            if wanted not in names:
                raise ValueError(f"channel {wanted!r} is not in {path}; it has {', '.join(names) or 'no names'}")
            wanted = names.index(wanted)
        name = {"t": "time", "c": "channel"}.get(axis, axis)
        if not 0 <= wanted < size:
            raise ValueError(f"{name} is {wanted}, but {path} has 0 to {size - 1}")
        fixed[axis] = wanted
    if "c" not in axes and channel not in (None, 0):
        raise ValueError(f"channel is {channel!r}, but {path} has one channel")
    return _Source(array, axes, fixed, str(path))


def _open_tiff(path: Path) -> tuple[Any, str, Sequence[str]]:
    """Array, its axes as letters of "tzcyx" and names of channels; a memory map where the TIFF is not compressed."""
    tifffile = need("tifffile", "tiff")
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes = series.axes.lower().replace("s", "c").replace("i", "t").replace("q", "t")
            names = _ome_channel_names(file.ome_metadata)
            if series.dataoffset is not None:
                return tifffile.memmap(path, series=0, mode="r"), axes, names
    except Exception as error:  # the decoders of tifffile raise whatever a broken file leads them to
        raise ImageError(f"{path}: unreadable TIFF ({error})") from error
    # A compressed TIFF is decoded tile by tile, which tifffile offers as a Zarr store.
    zarr = need("zarr", "large")
    store = tifffile.imread(path, series=0, level=0, aszarr=True)
    return zarr.open_array(store, mode="r"), axes, names


def _ome_channel_names(document: str | None) -> list[str]:
    if not document:
        return []
    channels = need("tifffile", "tiff").xml2dict(document)["OME"]["Image"]
    channels = channels[0] if isinstance(channels, list | tuple) else channels
    channels = channels["Pixels"].get("Channel", [])
    return [str(one.get("Name", "")) for one in (channels if isinstance(channels, list | tuple) else [channels])]


def _open_zarr(path: Path) -> tuple[Any, str, Sequence[str]]:
    zarr = need("zarr", "large")
    try:
        node = zarr.open(str(path), mode="r")
    except Exception as error:  # each kind of store has exceptions of its own
        raise ImageError(f"{path}: no Zarr array or group ({error})") from error
    if isinstance(node, zarr.Array):
        if not 2 <= node.ndim <= 5:
            raise ImageError(f"{path}: a Zarr array must have 2 to 5 axes (t, z, c, y, x), this is {node.shape}")
        return node, "tczyx"[5 - node.ndim :] if node.ndim != 3 else "cyx", []
    attributes = dict(node.attrs)
    attributes = attributes.get("ome", attributes)  # OME-NGFF 0.5, else 0.4
    if "multiscales" not in attributes:
        raise ImageError(f"{path}: a Zarr group without OME metadata (multiscales); name the array in it")
    scales = attributes["multiscales"][0]
    axes = "".join(axis["name"].lower() for axis in scales["axes"])
    names = [str(one.get("label", "")) for one in attributes.get("omero", {}).get("channels", [])]
    return node[scales["datasets"][0]["path"]], axes, names


def segment_large(
    engine: Engine,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    channel: str | int | None = None,
    time: int = 0,
    z: int = 0,
    threshold: float | None = None,
    max_value: float | None = None,
    tile: int | None = None,
    progress: bool = True,
) -> None:
    """Writes the mask of an image of any size: what `engine.segment(image, tiling="exact", ...)` gives, bit for bit.

    source           TIFF, OME-TIFF, Zarr array or OME-Zarr; see `open_image`, also for `channel`, `time` and `z`.
    output           ends in .tif or .tiff: an uncompressed TIFF, BigTIFF from 4 GB, which ImageJ reads; .zarr: OME-Zarr
                     (NGFF 0.4) with levels of half the size each for viewers.
    threshold, max_value, tile   as of `Engine.segment`.
    progress         a bar with an estimate of the time left on stderr.

    While it runs, OUTPUT.progress says which bands of tiles are done.  Called again with the same arguments after a
    failure, it does only the rest; a result made with other arguments is refused.

    `UnsupportedError` for a network that standardises each image (its statistics need the whole), has no mask or
    cannot be tiled exactly; `ImageError` and `OSError` for files that cannot be read or written.
    """
    image = open_image(source, channel=channel, time=time, z=z)
    output = Path(output)
    if output.suffix.lower() not in (*_TIFF, ".zarr"):
        raise ValueError(f"{output}: the result must end in .tif, .tiff or .zarr")
    if output.resolve() == Path(source).resolve():
        raise ImageError(f"{output}: the result would overwrite the image; choose another name")
    if engine.info.output == "identity":
        raise UnsupportedError(f"{engine.info.name!r} is a regression, it has values and no mask")
    if engine.standardises:
        raise UnsupportedError(f"{engine.info.name!r} standardises each image by statistics of the whole of it")
    rows, columns = (exact_tiles(engine, size, tile) for size in (image.height, image.width))
    journal = output.with_name(output.name + ".progress")
    task = _fingerprint(engine, image, channel, time, z, threshold, max_value, tile)
    done = _bands_done(journal, task, output)
    target = _open_target(output, image.height, image.width, fresh=done == 0)
    bar = tqdm(
        total=len(rows.spans) * len(columns.spans),
        initial=done * len(columns.spans),
        desc="segmenting",
        unit="tile",
        disable=None if progress else True,
    )
    margin = engine.info.margin
    with bar:
        for number, row in enumerate(rows.spans[done:], start=done):
            band = np.empty((row.end - row.begin, image.width), np.uint8)
            for column in columns.spans:
                pixels = image.window(row.origin - margin, column.origin - margin, rows.side, columns.side)
                mask = engine.segment(
                    to_channels(pixels, engine.info.channels),
                    tiling="none",
                    threshold=threshold,
                    max_value=max_value,
                )
                band[:, column.begin : column.end] = mask[
                    row.begin - row.origin : row.end - row.origin,
                    column.begin - column.origin : column.end - column.origin,
                ]
                bar.update()
            target[row.begin : row.end] = band
            if hasattr(target, "flush"):
                target.flush()
            _write_journal(journal, task, number + 1)
    if output.suffix.lower() == ".zarr":
        _write_pyramid(output)
    journal.unlink()


def band_bytes(engine: Engine, height: int, width: int, tile: int | None = None) -> int:
    """The most bytes of result that `segment_large` holds at a time; a tile of image and one pass come to that."""
    return max(span.end - span.begin for span in exact_tiles(engine, height, tile).spans) * width


def _fingerprint(engine: Engine, image: _Source, *options: Any) -> str:
    """Names what is computed, so that only a run of the very same goes on where another stopped."""
    written = os.stat(image.path).st_mtime_ns
    what = (image.path, written, image.height, image.width, str(image.dtype), repr(engine.info), options)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _bands_done(journal: Path, task: str, output: Path) -> int:
    if not journal.exists():
        if output.exists():
            raise ImageError(f"{output} exists; remove it, or choose another name")
        return 0
    state = json.loads(journal.read_text())
    if state["task"] != task:
        raise ImageError(
            f"{output}: begun for another image, engine or options; remove it and {journal.name} to start anew"
        )
    return int(state["bands"]) if output.exists() else 0


def _write_journal(journal: Path, task: str, bands: int) -> None:
    with write_beside(journal) as temporary:
        temporary.write_text(json.dumps({"task": task, "bands": bands}))


def _open_target(path: Path, height: int, width: int, *, fresh: bool) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in _TIFF:
        tifffile = need("tifffile", "tiff")
        if fresh:
            return tifffile.memmap(path, shape=(height, width), dtype=np.uint8, bigtiff=height * width >= 2**32 - 2**25)
        return tifffile.memmap(path, mode="r+")
    zarr = need("zarr", "large")
    group = zarr.open_group(str(path), mode="w" if fresh else "r+", zarr_format=2)
    return _new_level(group, 0, height, width) if fresh else group["0"]


def _new_level(group: Any, level: int, height: int, width: int) -> Any:
    return group.create_array(
        str(level), shape=(height, width), chunks=(min(1024, height), min(1024, width)), dtype="uint8", fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"}, overwrite=True,
    )  # fmt: skip


def _write_pyramid(path: Path) -> None:
    """Levels of every second pixel of the one before, down to 1024 pixels, and the metadata by which viewers find them.

    Masks hold classes, which have no means.
    """
    group = need("zarr", "large").open_group(str(path), mode="r+")
    level = 0
    finer = group["0"]
    while max(finer.shape) > 1024:
        level += 1
        height, width = (-(-side // 2) for side in finer.shape)
        coarser = _new_level(group, level, height, width)
        for top in range(0, height, 1024):
            bottom = min(top + 1024, height)
            coarser[top:bottom] = finer[2 * top : 2 * bottom][::2, ::2]
        finer = coarser
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "name": path.stem,
            "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
            "datasets": [
                {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n, 2.0**n]}]}
                for n in range(level + 1)
            ],
        }
    ]
