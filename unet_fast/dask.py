"""Bulk work on many processes and machines with Dask.

    mask = unet_fast.dask.segment(dask.array.from_zarr("slide.zarr"), engine)     # lazy
    mask.to_zarr("mask.zarr")                                                      # here, or on a cluster
    labels = unet_fast.dask.label(dask.array.from_zarr("mask.zarr"))

Each process opens the engine once: workers must see the engine file under the same path, unless the engine was opened
from bytes.  `pip install unet_fast[dask]`.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import objects
from .engine import Engine, check_max_value, check_threshold
from .errors import UnsupportedError

#: Pixels along each side of a block where none are asked for.
_BLOCK = 2048


def segment(
    array: Any,
    engine: Engine,
    *,
    threshold: float | None = None,
    max_value: float | None = None,
    block: int | None = None,
) -> Any:
    """The mask of an array (..., H, W, C), or for an engine of one channel (..., H, W), as a lazy Dask array.

    array    Dask array, or what `dask.array.asarray` takes, such as a Zarr array; uint8, uint16 or float32.  As for
             `Engine.segment`, a last axis of 1 is a channel, and one of 2 to 4 of a 3-D array is not taken for a width.
    engine   give it `threads=1` where each core has a worker process of its own.
    block    pixels along each side of the pieces that are computed by themselves, rounded up to what the network
             needs; None: about 2048.

    Returns uint8 (..., H, W).  Every block is segmented with tiling="exact" and so much of its neighbours around it
    that it equals the whole image, up to roundings of the last bit of a probability; the result does not depend on
    the number of workers, nor on which of them fail.
    `ValueError` and `TypeError` for other axes and arguments, `UnsupportedError` for a network that cannot be tiled
    exactly, standardises each image or has no mask.
    """
    dask_array = objects.need("dask.array", "dask")
    info = engine.info
    check_threshold(info, threshold)
    check_max_value(max_value)
    if engine.standardises:
        raise UnsupportedError(f"{info.name!r} standardises each image by statistics of the whole of it")
    if info.halo is None:
        raise UnsupportedError(f"{info.name!r} cannot be tiled exactly")
    array = dask_array.asarray(array)
    axes = 2 if info.channels == 1 else 3
    if axes == 2 and array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    is_colour = axes == 2 and array.ndim == 3 and array.shape[-1] in (2, 3, 4)
    if array.ndim < axes or is_colour or (axes == 3 and array.shape[-1] != info.channels):
        expected = "(..., H, W) or (..., H, W, 1)" if axes == 2 else f"(..., H, W, {info.channels})"
        raise ValueError(f"array must be {expected} for this engine, got shape {array.shape}")
    # Blocks begin where poolings and the 4x4 tiles of Winograd's convolutions do in the whole image: see tiler.cpp.
    grid = 4 * info.multiple
    depth = -(-info.halo // grid) * grid
    side = max(-(-(block or _BLOCK) // grid) * grid, depth)
    first = array.ndim - axes
    sizes = tuple(_chunks(size, side, depth) for size in array.shape[first : first + 2])
    outer = ((1,) * size for size in array.shape[:first])
    array = array.rechunk((*outer, *sizes, *((size,) for size in array.shape[first + 2 :])))
    reach = dict.fromkeys(range(array.ndim), 0)
    reach |= {first + axis: depth for axis in (0, 1) if len(sizes[axis]) > 1}
    around = dask_array.overlap.overlap(array, depth=reach, boundary="none", allow_rechunk=False)
    _, (source, options) = engine.__reduce__()
    mask = around.map_blocks(
        _segment_block,
        axes=axes,
        source=source,
        options=tuple(options.items()),
        threshold=threshold,
        max_value=max_value,
        dtype=np.uint8,
        drop_axis=list(range(first + 2, array.ndim)),
        meta=np.empty((0,) * (first + 2), np.uint8),
    )
    reach = {axis: reach[axis] for axis in range(first + 2)}
    return dask_array.overlap.trim_overlap(mask, depth=reach, boundary="none")


def _chunks(size: int, side: int, depth: int) -> tuple[int, ...]:
    """`size` in pieces of `side`, the last one neither empty nor smaller than its neighbour's context of `depth`."""
    whole, rest = divmod(size, side)
    if rest == 0:
        return (side,) * whole
    return (*(side,) * (whole - 1), side + rest) if whole and rest < depth else (*(side,) * whole, rest)


@functools.lru_cache(maxsize=4)
def _engine(source: str | bytes, options: tuple[tuple[str, Any], ...]) -> Engine:
    """The engine of this process."""
    return Engine(source, **dict(options))


def _segment_block(
    pixels: NDArray[Any],
    *,
    axes: int,
    source: str | bytes,
    options: tuple[tuple[str, Any], ...],
    threshold: float | None,
    max_value: float | None,
) -> NDArray[np.uint8]:
    """The mask of a block (1, ..., 1, H, W[, C])."""
    image = pixels.reshape(pixels.shape[pixels.ndim - axes :])
    mask = _engine(source, options).segment(image, tiling="exact", threshold=threshold, max_value=max_value)
    result: NDArray[np.uint8] = mask.reshape(*pixels.shape[: pixels.ndim - axes], *mask.shape)
    return result


def label(mask: Any) -> Any:
    """The connected objects of a mask (H, W) of whole numbers as a lazy Dask array, numbered as `objects.label` does.

    What lies along the borders of the blocks is computed at once, for which the whole mask is read; so store or persist
    a mask that takes long to compute.
    """
    dask, dask_array = objects.need("dask", "dask"), objects.need("dask.array", "dask")
    mask = dask_array.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), got shape {mask.shape}; label the planes of a stack one by one")
    blocks = mask.to_delayed()
    borders = dask.compute([[dask.delayed(_borders)(block) for block in row] for row in blocks])[0]
    merger = objects.BorderMerger()
    used, counts = (np.zeros(mask.numblocks, np.int64) for _ in range(2))
    tops, lefts = (np.cumsum((0, *sizes)) for sizes in mask.chunks)
    for row, line in enumerate(borders):
        for column, (edges, classes, firsts) in enumerate(line):
            start = merger.claim(firsts[0] + tops[row], firsts[1] + lefts[column], mask.shape[1])
            used[row, column], counts[row, column] = start, firsts.shape[1]
            line[column] = ([np.where(edge != 0, edge + start, 0) for edge in edges], classes)
    # A row of blocks touches the next one along all of its width, so that corners are seen too.
    for above, below in pairwise(borders):
        merger.touch(_line(above, 0, 1), _line(below, 0, 0), _line(above, 1, 1), _line(below, 1, 0))
    for line in borders:
        for here, there in pairwise(line):
            merger.touch(here[0][3], there[0][2], here[1][3], there[1][2])
    numbers = merger.numbers()
    pieces = [
        [
            dask_array.from_delayed(
                dask.delayed(_numbered)(block, np.concatenate([numbers[:1], numbers[start + 1 : start + count + 1]])),
                (mask.chunks[0][row], mask.chunks[1][column]),
                np.int32,
            )
            for column, (block, start, count) in enumerate(zip(blocks[row], used[row], counts[row], strict=True))
        ]
        for row in range(len(blocks))
    ]
    return dask_array.block(pieces)


def _borders(mask: NDArray[Any]) -> tuple[list[NDArray[Any]], list[NDArray[Any]], NDArray[np.int64]]:
    """Of a block: labels along top, bottom, left, right; classes there; (2, n) row and column of each first pixel."""
    labels = objects.label(mask)
    edges: list[Any] = [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]]
    firsts = np.divmod(objects.first_pixels(labels, int(labels.max(initial=0)))[1:], labels.shape[1])
    return [labels[edge].astype(np.int64) for edge in edges], [mask[edge].copy() for edge in edges], np.stack(firsts)


def _line(row: list[Any], kind: int, side: int) -> NDArray[Any]:
    """Labels (0) or classes (1) along the top (0) or bottom (1) of a row of blocks."""
    return np.concatenate([block[kind][side] for block in row])


def _numbered(mask: NDArray[Any], numbers: objects.Labels) -> objects.Labels:
    return numbers[objects.label(mask)]
