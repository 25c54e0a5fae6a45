"""Objects: numbering, splitting, merging across tiles, measuring, tables."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_fast.cli import main
from unet_fast.images import read_pages, write_image
from unet_fast.objects import BorderMerger, compact, label, measure, need, split_object, write_table

pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
from scipy import ndimage

Files = Callable[..., Path]
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
    assert [table[name].tolist() for name in ("top", "left", "bottom", "right")] == [
        [2, 10],
        [3, 20],
        [6, 15],
        [13, 25],
    ]
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


def test_sides_of_a_pixel_in_a_list() -> None:
    mask = np.ones((2, 3), int)
    assert measure(mask, pixel_size=[0.5, 0.25])["area"] == measure(mask, pixel_size=(0.5, 0.25))["area"] == 0.75


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


def test_label_images_are_as_wide_as_they_need(tmp_path: Path) -> None:
    few, many = np.array([[0, 1, 65535]], np.int32), np.array([[0, 65536, 2**31 - 1]], np.int32)
    assert [page.dtype for page in compact([few, few])] == [np.uint16, np.uint16]
    pages = compact([few, many])
    assert [page.dtype for page in pages] == [np.int32, np.int32]
    write_image(tmp_path / "labels.tif", pages)
    read = pytest.importorskip("tifffile", reason="needs tifffile (extra tiff)").imread(tmp_path / "labels.tif")
    assert read.dtype == np.int32
    assert np.array_equal(read, pages)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, seed in (("first.png", 1), ("second.png", 2)):
        write_image(folder / name, blobs((40, 46), seed) * np.uint8(200))
    write_image(folder / "stack.tif", [blobs((40, 36), seed) * np.uint8(180) for seed in (3, 4)])
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def segment(engine: Path, images: Path, out: Path, *options: Any) -> int:
    fixed = ["--device", "cpu", "--precision", "float32", "--threads", "1"]
    return main(["segment", str(engine), str(images), "-o", str(out), *map(str, options), *fixed])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["plain", "classes", "valid"])
def test_command_line(tmp_path: Path, images: Path, engine_file: Files, name: str) -> None:
    out = tmp_path / "out"
    options = ("--labels", "--table", "csv", "--split", 4, "--pixel-size", 0.5, "--montage", "--threshold", 0.5)
    options = options if name != "classes" else options[:-2]
    assert segment(engine_file(name), images, out, *options) == 1
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "first.png", "labels/first.tif", "labels/second.tif", "labels/stack.tif", "montage.png", "second.png",
        "stack.tif", "table/first.csv", "table/second.csv", "table/stack.csv",
    ]  # fmt: skip
    for stem, ending in (("first", "png"), ("stack", "tif")):
        masks, pages = read_pages(out / f"{stem}.{ending}"), read_pages(images / f"{stem}.{ending}")
        rows = rows_of(out / "table" / f"{stem}.csv")
        for index, (labels, mask) in enumerate(zip(read_pages(out / "labels" / f"{stem}.tif"), masks, strict=True)):
            expected = label(mask, split=4)
            assert expected.max() > 1
            assert labels.dtype == np.uint16
            assert np.array_equal(labels, expected)
            classes = mask if name == "classes" else None
            table = measure(expected, pages[index], classes=classes, pixel_size=0.5)
            mine = [row for row in rows if row["page"] == str(index)]
            assert list(mine[0]) == ["page", *table]
            for column, values in table.items():
                read = np.array([float(row[column]) for row in mine])
                assert np.array_equal(read, values.astype(float), equal_nan=True), column


def test_a_second_run_does_only_the_rest(
    tmp_path: Path, images: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = (engine_file("plain"), images, out, "--labels", "--table", "csv", "--overlay", "--resume")
    assert segment(*options) == 1
    output = capsys.readouterr()
    assert "3 of 4 files" in output.out
    assert "broken.png" in output.err
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    write_image(images / "broken.png", blobs((30, 30), 9) * np.uint8(200))
    (out / "table" / "second.csv").unlink()
    assert segment(*options) == 0
    assert "2 files had their results already" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    changed = {path.stem for path in after if before.get(path) != after[path]}
    assert changed == {"second", "broken"}


def test_command_line_misuse(
    tmp_path: Path, images: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for engine, options, reason in (
        ("plain", ["--split", 4], "--split is about objects"),
        ("plain", ["--pixel-size", "1,2"], "--pixel-size is about objects"),
        ("regression", ["--labels"], "regression"),
    ):
        assert segment(engine_file(engine), images, out, *options) == 1
        assert reason in capsys.readouterr().err
    for size in ("0", "1,2,3", "1,nan"):
        with pytest.raises(SystemExit):
            segment(engine_file("plain"), images, out, "--table", "csv", "--pixel-size", size)
        assert "must be a length" in capsys.readouterr().err
    assert not out.exists()


def test_without_scikit_image_one_clear_line(
    tmp_path: Path, images: Path, engine_file: Files, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert segment(engine_file("plain"), images, tmp_path / "out", "--labels") == 1
    assert "pip install 'unet_fast[objects]'" in capsys.readouterr().err


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
    for size in (0, float("nan"), (1.0, -1.0), [1.0], "1", [0.3, "0.3"]):
        with pytest.raises(ValueError, match="pixel_size"):
            measure(mask.astype(int), pixel_size=size)
    with pytest.raises(ValueError, match=r"cells\.txt"):
        write_table(tmp_path / "cells.txt", {})
    with pytest.raises(ImportError, match=r"unet_fast\[objects\]"):
        need("no_such_module_of_anyone", "objects")
