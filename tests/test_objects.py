"""Objects: numbering, splitting, merging across tiles, measuring, tables."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_fast.objects import BorderMerger, label, measure, need, split_object, write_table

pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
from scipy import ndimage

EIGHT = np.ones((3, 3), bool)


def blobs(shape: tuple[int, int], seed: int, classes: int = 1) -> Any:
    """A mask with objects of many sizes, some of them long."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.standard_normal(shape), 1.5)
    return ((smooth > 0.1) * random.integers(1, classes + 1, shape)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_one_class_is_numbered_as_by_scipy(seed: int) -> None:
    mask = blobs((61, 83), seed) * np.uint8(255)
    expected, count = ndimage.label(mask, EIGHT)
    labels = label(mask)
    assert labels.dtype == np.int32
    assert count > 3
    assert np.array_equal(labels, expected)
    assert np.array_equal(label(mask != 0), expected)


def test_classes_that_touch_are_different_objects() -> None:
    mask = np.array([[1, 1, 2], [0, 2, 2], [3, 0, 0], [0, 0, 1]], np.uint8)
    assert label(mask).tolist() == [[1, 1, 2], [0, 2, 2], [3, 0, 0], [0, 0, 4]]


def test_empty_and_full() -> None:
    assert not label(np.zeros((5, 4), bool)).any()
    assert (label(np.ones((5, 4), bool)) == 1).all()
    assert all(len(column) == 0 for column in measure(np.zeros((5, 4), np.int32)).values())


def two_discs() -> Any:
    y, x = np.mgrid[:40, :60]
    return ((y - 20) ** 2 + (x - 20) ** 2 <= 100) | ((y - 20) ** 2 + (x - 36) ** 2 <= 100)


def test_touching_discs_are_split_in_the_middle() -> None:
    mask = two_discs()
    assert label(mask).max() == 1
    labels = label(mask, split=5)
    assert labels.max() == 2
    assert np.array_equal(labels != 0, mask)
    areas = np.bincount(labels.ravel())[1:]
    assert abs(int(areas[0]) - int(areas[1])) < 0.05 * areas.sum()
    assert label(mask, split=40).max() == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_split_depends_on_the_object_alone(seed: int) -> None:
    mask = blobs((64, 64), seed) != 0
    labels = label(mask, split=3)
    assert np.array_equal(labels != 0, mask)
    whole = label(mask)
    assert labels.max() > whole.max()
    for number, box in enumerate(ndimage.find_objects(whole), start=1):
        members = whole[box] == number
        parts, count = split_object(members, 3)
        pairs = np.unique(np.stack([parts[members], labels[box][members]]), axis=1)
        assert pairs.shape[1] == count == len(np.unique(pairs[1]))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("tile", [(7, 5), (16, 16), (1, 1), (100, 9)])
def test_tiles_put_together_equal_the_whole(tile: tuple[int, int], classes: int) -> None:
    mask = blobs((48, 57), seed=tile[0] + classes, classes=classes)
    height, width = mask.shape
    merger = BorderMerger()
    labels = np.zeros(mask.shape, np.int32)
    for top in range(0, height, tile[0]):
        for left in range(0, width, tile[1]):
            window = np.s_[top : top + tile[0], left : left + tile[1]]
            labels[window] = merger.add(label(mask[window]), top, left, width)
    assert len(np.unique(labels)) == merger.count + 1
    for top in range(tile[0], height, tile[0]):
        merger.touch(labels[top - 1], labels[top], mask[top - 1], mask[top])
    for left in range(tile[1], width, tile[1]):
        merger.touch(labels[:, left - 1], labels[:, left], mask[:, left - 1], mask[:, left])
    assert np.array_equal(merger.numbers()[labels], label(mask))


def test_measures_of_known_shapes() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[2:6, 3:13] = 1
    labels[10:15, 20:25] = 7
    image = np.where(labels == 1, 50, 200).astype(np.uint8)
    table = measure(labels, image, pixel_size=0.5)
    assert table["label"].tolist() == [1, 7]
    assert table["area"].tolist() == [40 * 0.25, 25 * 0.25]
    assert table["centroid_y"].tolist() == [3.5 * 0.5, 12 * 0.5]
    assert table["centroid_x"].tolist() == [7.5 * 0.5, 22 * 0.5]
    assert [table[name].tolist() for name in ("top", "left", "bottom", "right")] == [[2, 10], [3, 20], [6, 15], [13, 25]]
    assert table["mean_intensity"].tolist() == [50, 200]
    assert table["solidity"].tolist() == [1, 1]
    assert table["eccentricity"][1] == pytest.approx(0, abs=1e-6)
    # Of the inner border, in pixels: 2 * (4 + 10) - 4 and 4 * 5 - 4.
    assert table["perimeter"].tolist() == pytest.approx([24 * 0.5, 16 * 0.5])
    colour = measure(labels, np.stack([image, image // 2], axis=-1))
    assert colour["mean_intensity_1"].tolist() == [25, 100]
    oblong = measure(labels, pixel_size=(2.0, 1.0))
    assert oblong["area"].tolist() == [80, 50]
    assert np.isnan(oblong["perimeter"]).all()


def test_csv_gives_back_the_same_numbers(tmp_path: Path) -> None:
    table = measure(label(blobs((50, 50), seed=5)), pixel_size=0.1)
    write_table(tmp_path / "cells.csv", table)
    with open(tmp_path / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table)
    for name, column in table.items():
        read = np.array([float(row[name]) for row in rows])
        assert np.array_equal(read, column.astype(float), equal_nan=True), name
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]


def test_parquet_gives_back_the_same_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (extra parquet)")
    table = measure(label(blobs((50, 50), seed=6)))
    write_table(tmp_path / "cells.parquet", table)
    read = parquet.read_table(tmp_path / "cells.parquet").to_pydict()
    assert read == {name: column.tolist() for name, column in table.items()}


def test_misuse(tmp_path: Path) -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        label(np.stack([mask, mask]))
    with pytest.raises(TypeError, match="float64"):
        label(mask.astype(float))
    for split in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="split"):
            label(mask, split=split)
    with pytest.raises(ValueError, match="must agree"):
        measure(mask.astype(int), np.zeros((4, 5)))
    for size in (0, float("nan"), (1.0, -1.0)):
        with pytest.raises(ValueError, match="pixel_size"):
            measure(mask.astype(int), pixel_size=size)
    with pytest.raises(ValueError, match=r"cells\.txt"):
        write_table(tmp_path / "cells.txt", {})
    with pytest.raises(ImportError, match=r"unet_fast\[objects\]"):
        need("no_such_module_of_anyone", "objects")
