"""Objects: from a mask to numbered objects and a table of their sizes and shapes.

    labels = label(mask)                          # int32, 0 is background
    labels = label(mask, split=5.0)               # touching objects cut apart
    table = measure(labels, image, pixel_size=0.32)
    write_table("cells.csv", table)

SciPy labels, scikit-image splits and measures; both come with `pip install unet_fast[objects]`.

Objects are numbered from 1 in the order of their first pixels, row by row.  Each is split by its own pixels alone, so
that the result does not depend on the tiles in which a large image was labelled: see `BorderMerger`.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import write_beside

Labels = NDArray[np.int32]
Table = dict[str, NDArray[Any]]

#: Pixels touch along edges and corners.
_NEIGHBOURS = np.ones((3, 3), bool)

_MEASURES = (
    "label",
    "area",
    "perimeter",
    "centroid",
    "bbox",
    "eccentricity",
    "solidity",
    "equivalent_diameter_area",
)


def need(module: str, extra: str) -> Any:
    """The module `module`, or `ImportError` that names the extra of unet_fast with which it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module} ({error}); `pip install 'unet_fast[{extra}]'` installs it") from error


def label(mask: NDArray[Any], *, split: float | None = None) -> Labels:
    """Numbers the connected objects of a mask.

    mask    (H, W) bool or whole numbers; 0 is background.  Of a mask of several classes, objects of different classes
            are different objects, even where they touch.
    split   None: touching objects stay one.  Else they are cut apart by a watershed on the distance to the background:
            at least this many pixels must lie between the centres of two parts.  The border of the image counts as
            background.

    Returns int32 (H, W): 0 is background, objects are 1, 2, ... in the order of their first pixels.
    `ValueError` for another shape or a `split` that is not positive; `TypeError` for another dtype.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), got shape {mask.shape}; label the pages of a stack one by one")
    if mask.dtype.kind not in "biu":
        raise TypeError(f"mask must hold bool or whole numbers, got {mask.dtype}; compare a probability first")
    check_split(split)
    ndimage = need("scipy.ndimage", "objects")
    labels = np.zeros(mask.shape, np.int32)
    count = 0
    classes = [True] if mask.dtype.kind == "b" else [value for value in np.unique(mask) if value != 0]
    for value in classes:
        members = mask == value
        part, found = ndimage.label(members, _NEIGHBOURS)
        labels[members] = part[members] + count
        count += found
    if split is not None:
        count = _split_all(labels, count, split)
    elif len(classes) < 2:
        return labels  # SciPy numbers in this order
    return numbered_by_first_pixel(labels, count)


def check_split(split: float | None) -> None:
    """`ValueError` unless `split` is None or positive and finite."""
    if split is not None and not 0 < split < math.inf:
        raise ValueError(f"split must be a positive distance in pixels or None, got {split!r}")


def numbered_by_first_pixel(labels: Labels, count: int) -> Labels:
    """`labels` of 0 .. `count` as 0, 1, 2, ... in the order of their first pixels."""
    first = first_pixels(labels, count)
    first[0] = -1
    numbers = np.empty(count + 1, np.int32)
    numbers[np.argsort(first)] = np.arange(count + 1, dtype=np.int32)
    return numbers[labels]


def first_pixels(labels: Labels, count: int) -> NDArray[np.int64]:
    """(count + 1,): where each of the labels 0 .. `count` first occurs in `labels`, row by row; its size where not."""
    first = np.full(count + 1, labels.size, np.int64)
    first[labels.ravel()[::-1]] = np.arange(labels.size)[::-1]  # of an index that is repeated the last value stays
    return first


def split_object(members: NDArray[np.bool_], distance: float) -> tuple[Labels, int]:
    """One object, (H, W) of its bounding box, as parts 1 .. n, 0 elsewhere, and n.

    Depends on the object's own pixels alone.
    """
    ndimage = need("scipy.ndimage", "objects")
    feature = need("skimage.feature", "objects")
    segmentation = need("skimage.segmentation", "objects")
    padded = np.pad(members, 1)
    depth = ndimage.distance_transform_edt(padded)
    # Peaks of equal height side by side are one plateau; without smoothing each would be a centre.
    smooth = ndimage.gaussian_filter(depth, 1.0) * padded
    peaks = feature.peak_local_max(smooth, min_distance=max(1, math.ceil(distance)), exclude_border=False)
    if len(peaks) < 2:
        return members.astype(np.int32), 1
    markers = np.zeros(padded.shape, np.int32)
    markers[tuple(peaks[np.lexsort(peaks.T[::-1])].T)] = np.arange(1, len(peaks) + 1)
    parts = segmentation.watershed(-smooth, markers, mask=padded, connectivity=_NEIGHBOURS)
    return parts[1:-1, 1:-1].astype(np.int32), len(peaks)


def _split_all(labels: Labels, count: int, distance: float) -> int:
    """Splits every object of `labels` in place; returns the largest label then in use."""
    boxes = need("scipy.ndimage", "objects").find_objects(labels)
    for number, box in enumerate(boxes, start=1):
        members = labels[box] == number
        parts, found = split_object(members, distance)
        if found > 1:
            further = parts > 1  # the first part keeps the number
            labels[box][further] = parts[further] + (count - 1)
            count += found - 1
    return count


class BorderMerger:
    """Makes labels that were given tile by tile agree: tells which of them are one object.

    Each tile has labels of its own (`offset` onwards); `touch` is called with the lines of pixels on both sides of each
    border.  `numbers` then maps each label to the number that its object has in the image as a whole, the same that
    `label` gives to the whole image.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._pairs: list[NDArray[np.int64]] = []

    def add(self, labels: Labels, top: int, left: int, width: int) -> Labels:
        """The labels 1 .. n of a tile at (top, left) of an image `width` wide as labels not used before, int32."""
        rows, columns = np.divmod(first_pixels(labels, int(labels.max()))[1:], labels.shape[1])
        used = self.claim(rows + top, columns + left, width)
        return np.where(labels != 0, labels + np.int32(used), np.int32(0))

    def claim(self, rows: NDArray[np.int64], columns: NDArray[np.int64], width: int) -> int:
        """Takes a label for each object of a tile, whose first pixels are at (n,) rows and columns of an image `width`
        wide.  Returns the labels in use before, after which these come."""
        used = self.count
        if used + len(rows) > np.iinfo(np.int32).max:
            raise ValueError(f"more than {np.iinfo(np.int32).max} pieces of objects; the mask is noise")
        self._first.append(rows * width + columns)
        self.count += len(rows)
        return used

    def touch(
        self,
        before: Labels,
        after: Labels,
        classes_before: NDArray[Any] | None = None,
        classes_after: NDArray[Any] | None = None,
    ) -> None:
        """Two lines of labels, (n,) each, that lie side by side; with their classes where there are several."""
        for shift in (-1, 0, 1):
            ours = slice(max(0, -shift), len(before) - max(0, shift))
            theirs = slice(max(0, shift), len(after) - max(0, -shift))
            here, there = before[ours], after[theirs]
            same = (here != 0) & (there != 0)
            if classes_before is not None and classes_after is not None:
                same &= classes_before[ours] == classes_after[theirs]
            if same.any():
                self._pairs.append(np.unique(np.stack([here[same], there[same]]).astype(np.int64), axis=1))

    def numbers(self) -> Labels:
        """(count + 1,) int32: the final number of each label; 0 stays 0."""
        sparse = need("scipy.sparse", "objects")
        graph = need("scipy.sparse.csgraph", "objects")
        size = self.count + 1
        first = np.concatenate(self._first)
        rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs], axis=1)
        links = sparse.coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
        groups, group = graph.connected_components(links, directed=False)
        earliest = np.full(groups, np.iinfo(np.int64).max)
        np.minimum.at(earliest, group, first)
        earliest[group[0]] = -1  # the background comes first, as number 0
        rank = np.empty(groups, np.int32)
        rank[np.argsort(earliest, kind="stable")] = np.arange(groups, dtype=np.int32)
        return rank[group]


def measure(
    labels: NDArray[Any],
    image: NDArray[Any] | None = None,
    *,
    classes: NDArray[Any] | None = None,
    pixel_size: float | tuple[float, float] = 1.0,
) -> Table:
    """A table of the objects, one entry per object and column.

    labels      (H, W) whole numbers, 0 is background.
    image       (H, W) or (H, W, C) of the same H, W: adds the mean intensity, in the values of the image, per channel.
    classes     (H, W) mask of several classes: adds the class of each object, that of its first pixel.
    pixel_size  side of a pixel, or (height, width) of it, in any unit of length: lengths are in that unit, areas in
                its square.  The bounding box stays in pixels; its bottom and right are excluded.

    Columns: label, with `classes` class, area, perimeter, centroid_y, centroid_x, top, left, bottom, right,
    eccentricity, solidity, equivalent_diameter; with an image mean_intensity, or mean_intensity_0, _1, ... of several
    channels.  The perimeter is NaN where pixels are not square, for which scikit-image has no definition.
    """
    regions = need("skimage.measure", "objects")
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be (H, W) whole numbers, got {labels.dtype} of shape {labels.shape}")
    for name, array in (("image", image), ("classes", classes)):
        if array is not None and array.shape[:2] != labels.shape:
            raise ValueError(
                f"{name}: {array.shape[:2]}, but labels are {labels.shape} (height, width); they must agree"
            )
    spacing = check_pixel_size(pixel_size)
    square = spacing[0] == spacing[1]
    wanted = [name for name in _MEASURES if square or name != "perimeter"]
    if image is not None:
        wanted.append("mean_intensity")
    found = regions.regionprops_table(labels, image, properties=wanted, spacing=spacing)
    table: Table = {"label": found["label"]}
    if classes is not None:
        first = first_pixels(labels, int(labels.max(initial=0)))
        table["class"] = classes.ravel()[first[found["label"]]]
    table |= {
        "area": found["area"].astype(np.float64),
        "perimeter": found["perimeter"] if square else np.full(len(found["label"]), np.nan),
        "centroid_y": found["centroid-0"],
        "centroid_x": found["centroid-1"],
    }
    table |= {name: found[f"bbox-{index}"] for index, name in enumerate(("top", "left", "bottom", "right"))}
    table |= {"eccentricity": found["eccentricity"], "solidity": found["solidity"]}
    table["equivalent_diameter"] = found["equivalent_diameter_area"]
    table |= {name.replace("-", "_"): column for name, column in found.items() if name.startswith("mean_intensity")}
    return table


def check_pixel_size(pixel_size: float | tuple[float, float]) -> tuple[float, float]:
    """(height, width) of a pixel; `ValueError` unless both are positive and finite."""
    sides = pixel_size if isinstance(pixel_size, tuple | list) else (pixel_size, pixel_size)
    if len(sides) != 2 or not all(isinstance(side, Real) and 0 < side < math.inf for side in sides):
        raise ValueError(f"pixel_size must be a positive length, or (height, width) of a pixel, got {pixel_size!r}")
    return float(sides[0]), float(sides[1])


def joined(tables: Sequence[Table]) -> Table:
    """Tables of the same columns, at least one, below each other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def compact(labels: Sequence[Labels]) -> list[NDArray[Any]]:
    """The pages of a label image in the type in which programs expect them: uint16 where all fit, else int32."""
    fits = max(int(page.max(initial=0)) for page in labels) <= np.iinfo(np.uint16).max
    return [page.astype(np.uint16 if fits else np.int32) for page in labels]


def check_table_name(path: str | os.PathLike[str]) -> None:
    """`ValueError` unless `path` ends in .csv or .parquet, `ImportError` where the latter lacks its library."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise ValueError(f"{path}: a table must end in .csv or .parquet")
    if ending == ".parquet":
        need("pyarrow", "parquet")


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Writes `table` as CSV or Parquet, by the ending of `path`; the file appears whole or not at all.

    Floats are written so that reading gives the same bits.  `ValueError` for another ending.
    """
    check_table_name(path)
    with write_beside(Path(path)) as temporary:
        if Path(path).suffix.lower() == ".csv":
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(table)
                writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
        else:
            arrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
            parquet.write_table(arrow.table(dict(table)), temporary)
