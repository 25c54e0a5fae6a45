"""The objects of a mask that need not fit into memory: numbered and measured band by band.

The numbers are those of `objects.label`, the measures those of `objects.measure` but for roundings of centroids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import objects
from .images import to_channels
from .stores import FileArray, Image

#: Pixels that are labelled at a time.
_BAND_PIXELS = 1 << 22
#: Objects that begin in one square of this side are measured together, but for those that are larger.
_SQUARE = 1024


class Rows(Protocol):
    """A mask that is read in bands of rows."""

    def read_rows(self, plane: int, top: int, bottom: int) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Numbered:
    """The objects 1 .. n of a plane.

    pixels  int32 (H, W).
    boxes   int64 (n + 1, 4): top, left, bottom, right of each, the last two excluded; row 0 means nothing.
    """

    pixels: FileArray
    boxes: NDArray[np.int64]


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row, excluded, of pieces of an image of a few million pixels each."""
    step = max(1, _BAND_PIXELS // width)
    return ((top, min(top + step, height)) for top in range(0, height, step))


def number_objects(mask: Rows, plane: int, pixels: FileArray, split: float | None) -> Numbered:
    """The objects of a plane of `mask`, in `pixels`, whose contents do not matter before."""
    height, width = pixels.shape
    merger = objects.BorderMerger()
    above_labels: NDArray[Any] | None = None
    above_mask: NDArray[Any] | None = None
    for top, bottom in bands(height, width):
        members = mask.read_rows(plane, top, bottom)
        labels = merger.add(objects.label(members), top, 0, width)
        if above_labels is not None:
            merger.touch(above_labels, labels[0], above_mask, members[0])
        pixels.write_rows(0, top, labels)
        above_labels, above_mask = labels[-1], members[-1]
    boxes = _renumber(pixels, merger.numbers())
    if split is not None:
        count = _split_all(pixels, boxes, split)
        boxes = _renumber(pixels, _ranks_by_first_pixel(pixels, count))
    return Numbered(pixels, boxes)


def _renumber(pixels: FileArray, numbers: objects.Labels) -> NDArray[np.int64]:
    """Replaces each label by its entry in `numbers`, (largest label + 1,); returns the boxes of the new labels."""
    ndimage = objects.need("scipy.ndimage", "objects")
    boxes = np.empty((int(numbers.max()) + 1, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = np.iinfo(np.int64).max, 0
    for top, bottom in bands(*pixels.shape):
        labels = numbers[pixels[top:bottom]]
        pixels.write_rows(0, top, labels)
        # Labels follow each other down the image, so a band has a narrow range of them.
        least = int(labels.min(where=labels != 0, initial=len(boxes)))
        shifted = np.where(labels != 0, labels - np.int32(least - 1), np.int32(0))
        for number, box in enumerate(ndimage.find_objects(shifted), start=least):
            if box is not None:
                here = np.array([top + box[0].start, box[1].start, top + box[0].stop, box[1].stop])
                boxes[number, :2] = np.minimum(boxes[number, :2], here[:2])
                boxes[number, 2:] = np.maximum(boxes[number, 2:], here[2:])
    return boxes


def _split_all(pixels: FileArray, boxes: NDArray[np.int64], distance: float) -> int:
    """Splits every object; returns the largest label then in use."""
    count = len(boxes) - 1
    for number, (top, left, bottom, right) in enumerate(boxes[1:], start=1):
        window = np.s_[top:bottom, left:right]
        labels = pixels[window]
        parts, found = objects.split_object(labels == number, distance)
        if found > 1:
            further = parts > 1  # the first part keeps the number
            labels[further] = parts[further] + (count - 1)
            pixels[window] = labels
            count += found - 1
    return count


def _ranks_by_first_pixel(pixels: FileArray, count: int) -> objects.Labels:
    """(count + 1,): the place of each label among them in the order of their first pixels; 0 for the background."""
    height, width = pixels.shape
    first = np.full(count + 1, height * width, np.int64)
    for top, bottom in bands(height, width):
        labels = pixels[top:bottom]
        here = objects.first_pixels(labels, count)
        first = np.minimum(first, np.where(here < labels.size, here + top * width, height * width))
    first[0] = -1
    ranks = np.empty(count + 1, np.int32)
    ranks[np.argsort(first)] = np.arange(count + 1, dtype=np.int32)
    return ranks


def measure_objects(
    numbered: Numbered,
    image: Image,
    plane: int,
    channels: int,
    classes: Rows | None,
    pixel_size: float | tuple[float, float],
) -> objects.Table:
    """What `objects.measure` tells of the objects and their intensities in that plane, turned to `channels`."""
    boxes = numbered.boxes[1:]
    sides = boxes[:, 2:] - boxes[:, :2]
    squares = boxes[:, :2] // _SQUARE
    alone = (sides > _SQUARE).any(axis=1)
    group = squares[:, 0] * (image.width // _SQUARE + 1) + squares[:, 1]
    group[alone] = -1 - np.flatnonzero(alone)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else [order]
    spacing = objects.check_pixel_size(pixel_size)
    tables = []
    for chosen in members:
        top, left = boxes[chosen, :2].min(axis=0, initial=image.height + image.width)
        bottom, right = boxes[chosen, 2:].max(axis=0, initial=0)
        if not len(chosen):
            top, left, bottom, right = 0, 0, 1, 1  # of no object, for the columns
        labels = numbered.pixels[top:bottom, left:right]
        labels[~np.isin(labels, chosen + 1)] = 0
        seen = image.window(plane, top=int(top), left=int(left), height=int(bottom - top), width=int(right - left))
        seen = to_channels(seen, channels, image.path)
        table = objects.measure(
            labels,
            seen[:, :, 0] if channels == 1 else seen,
            classes=None if classes is None else classes.read_rows(plane, top, bottom)[:, left:right],
            pixel_size=spacing,
        )
        for name, shift in (("top", top), ("bottom", top), ("left", left), ("right", left)):
            table[name] = table[name] + shift
        table["centroid_y"] = table["centroid_y"] + top * spacing[0]
        table["centroid_x"] = table["centroid_x"] + left * spacing[1]
        tables.append(table)
    table = objects.joined(tables)
    by_label = np.argsort(table["label"])
    return {name: column[by_label] for name, column in table.items()}
