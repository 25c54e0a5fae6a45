"""Images read, segmented and written tile by tile: equal to the whole, whatever is interrupted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.conftest import ROOT
from tests.networks import random_weights
from tests.pixels import random_image
from unet_fast import Engine, UNetSpec, UnsupportedError, freeze, large, large_objects
from unet_fast.cli import main
from unet_fast.graph import from_spec
from unet_fast.images import ImageError
from unet_fast.large import segment_large, unfinished
from unet_fast.objects import label, measure
from unet_fast.stores import FileArray, open_image

tifffile = pytest.importorskip("tifffile", reason="needs tifffile (extra tiff)")
Files = Callable[..., Path]


def open_engine(engine_file: Files, name: str = "plain") -> Engine:
    return Engine(engine_file(name), device="cpu", precision="float32")


def tile_of(engine: Engine) -> int:
    """A small legal tile that still has an inside."""
    info = engine.info
    least = 2 * (info.halo or 0) + 2 * info.margin + 3 * info.multiple
    return least + (info.remainder - least) % info.multiple


@pytest.mark.parametrize("name", ["plain", "classes", "rgb", "valid"])
@pytest.mark.parametrize(("height", "width"), [(301, 418), (1, 333), (256, 256), (37, 21)])
def test_equals_the_whole_image(tmp_path: Path, engine_file: Files, name: str, height: int, width: int) -> None:
    engine = open_engine(engine_file, name)
    channels = engine.info.channels
    image = random_image((height, width) if channels == 1 else (height, width, channels), seed=height)
    tile = tile_of(engine)
    if height > 200:
        assert len(engine.exact_tiles(height, width, tile=tile)[0].spans) > 1
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack" if channels == 1 else "rgb")
    segment_large(engine, tmp_path / "image.tif", tmp_path / "mask.tif", tile=tile, progress=False)
    assert np.array_equal(tifffile.imread(tmp_path / "mask.tif"), engine.segment(image, tiling="exact", tile=tile))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tif", "mask.tif"]


@pytest.mark.parametrize("name", ["plain", "valid"])
def test_spans_cover_an_axis_once(engine_file: Files, name: str) -> None:
    engine = open_engine(engine_file, name)
    for size in [*range(1, 400, 7), 1024, 1025, 5000]:
        rows, columns = engine.exact_tiles(size, 40, tile=tile_of(engine))
        assert [begin for _, begin, _ in rows.spans] == [0, *(end for _, _, end in rows.spans[:-1])]
        assert rows.spans[-1][2] == size
        core = rows.side - 2 * engine.info.margin
        assert all(origin <= begin < end <= origin + core for origin, begin, end in rows.spans)
        assert columns.spans == engine.exact_tiles(40, size, tile=tile_of(engine))[0].spans
    with pytest.raises(ValueError, match="too small"):
        engine.exact_tiles(5000, 40, tile=engine.info.minimum)


class Stopped(Exception):
    pass


def test_goes_on_where_it_stopped(tmp_path: Path, engine_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(engine_file)
    image = random_image((420, 260), seed=9)
    tifffile.imwrite(tmp_path / "image.tif", image)
    tile = tile_of(engine)
    rows, columns = (len(tiles.spans) for tiles in engine.exact_tiles(*image.shape, tile=tile))
    assert rows > 2
    original = Engine.segment
    calls = 0

    def counted(self: Engine, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == columns + 1:
            raise Stopped
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Engine, "segment", counted)
    paths = (tmp_path / "image.tif", tmp_path / "mask.tif")
    with pytest.raises(Stopped):
        segment_large(engine, *paths, tile=tile, progress=False)
    with pytest.raises(ImageError, match="another image, engine or options"):
        segment_large(engine, *paths, tile=tile, threshold=0.3, progress=False)
    before = calls
    segment_large(engine, *paths, tile=tile, progress=False)
    assert calls - before == (rows - 1) * columns
    assert np.array_equal(tifffile.imread(paths[1]), original(engine, image, tiling="exact", tile=tile))
    with pytest.raises(ImageError, match="exists"):
        segment_large(engine, *paths, tile=tile, progress=False)


def test_channels_and_times_of_ome_tiff(tmp_path: Path, engine_file: Files) -> None:
    engine = open_engine(engine_file)
    image = random_image((3, 2, 50, 60), "uint16", seed=4)
    path = tmp_path / "series.ome.tif"
    tifffile.imwrite(path, image, metadata={"axes": "TCYX", "Channel": {"Name": ["DAPI", "GFP"]}})
    for channel, index in (("GFP", 1), (0, 0)):
        output = tmp_path / f"{channel}.tif"
        segment_large(engine, path, output, channel=channel, time=2, progress=False)
        assert np.array_equal(tifffile.imread(output), engine.segment(image[2, index], tiling="exact"))
    with pytest.raises(ValueError, match="DAPI, GFP"):
        open_image(path, channel="RFP")
    with pytest.raises(ValueError, match="time is 3"):
        open_image(path, channel=0, time=3)


def test_zarr_in_and_out(tmp_path: Path, engine_file: Files) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    image = random_image((300, 1100), seed=3)
    array = zarr.create_array(str(tmp_path / "image.zarr"), shape=image.shape, chunks=(64, 128), dtype="uint8")
    array[:] = image
    segment_large(engine, tmp_path / "image.zarr", tmp_path / "mask.zarr", tile=tile_of(engine), progress=False)
    expected = engine.segment(image, tiling="exact", tile=tile_of(engine))
    group = zarr.open_group(str(tmp_path / "mask.zarr"), mode="r")
    assert np.array_equal(group["0"][:], expected)
    assert np.array_equal(group["1"][:], expected[::2, ::2])
    assert [level["path"] for level in group.attrs["multiscales"][0]["datasets"]] == ["0", "1"]
    assert np.array_equal(open_image(tmp_path / "mask.zarr").window(0, top=0, left=0, height=300, width=1100), expected)


def test_every_plane_of_a_stack(tmp_path: Path, engine_file: Files) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    image = random_image((2, 3, 60, 70), seed=8)
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, image, metadata={"axes": "TZYX"})
    expected = np.stack([engine.segment(stack, tiling="exact") for stack in image])
    for ending in ("tif", "zarr"):
        segment_large(engine, path, tmp_path / f"mask.{ending}", progress=False)
        segment_large(engine, path, tmp_path / f"one.{ending}", z=1, progress=False)
    assert np.array_equal(tifffile.imread(tmp_path / "mask.tif"), expected)
    assert np.array_equal(tifffile.imread(tmp_path / "one.tif"), expected[:, 1])
    assert np.array_equal(zarr.open_group(str(tmp_path / "mask.zarr"), mode="r")["0"][:], expected)
    scales = zarr.open_group(str(tmp_path / "one.zarr"), mode="r").attrs["multiscales"][0]
    assert [axis["name"] for axis in scales["axes"]] == ["t", "y", "x"]
    read = open_image(tmp_path / "one.zarr")
    assert read.axes == {"t": 2}
    assert np.array_equal(read.window(1, top=0, left=0, height=60, width=70), expected[1, 1])


@pytest.mark.parametrize(
    "options", [{"tile": (16, 16), "compression": "deflate"}, {"byteorder": ">"}, {"photometric": "miniswhite"}]
)
def test_kinds_of_tiff(tmp_path: Path, engine_file: Files, options: dict[str, Any]) -> None:
    if "tile" in options:
        pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    image = random_image((90, 70), "uint16", seed=2)
    tifffile.imwrite(tmp_path / "image.tif", image, **options)
    segment_large(engine, tmp_path / "image.tif", tmp_path / "mask.tif", progress=False)
    seen = 65535 - image if "photometric" in options else image
    assert np.array_equal(tifffile.imread(tmp_path / "mask.tif"), engine.segment(seen, tiling="exact"))


@pytest.mark.parametrize(("name", "split"), [("plain", None), ("plain", 3.0), ("classes", None), ("classes", 3.0)])
def test_objects_are_those_of_the_whole(
    tmp_path: Path, engine_file: Files, monkeypatch: pytest.MonkeyPatch, name: str, split: float | None
) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    monkeypatch.setattr(large_objects, "_BAND_PIXELS", 13 * 53)
    monkeypatch.setattr(large_objects, "_SQUARE", 16)
    engine = open_engine(engine_file, name)
    image = np.kron(random_image((2, 8, 9), seed=5), np.ones((6, 6), np.uint8))[:, :47, :53]
    tifffile.imwrite(tmp_path / "image.tif", image, metadata={"axes": "TYX"})
    threshold = float(np.median(engine.probability(image, tiling="exact"))) if name == "plain" else None
    segment_large(
        engine, tmp_path / "image.tif", tmp_path / "mask.tif", labels=tmp_path / "labels.tif", split=split,
        table=tmp_path / "cells.csv", pixel_size=(0.5, 0.25), threshold=threshold, progress=False,
    )  # fmt: skip
    labels, masks = tifffile.imread(tmp_path / "labels.tif"), tifffile.imread(tmp_path / "mask.tif")
    rows = np.genfromtxt(tmp_path / "cells.csv", delimiter=",", names=True)
    for time in range(2):
        expected = label(masks[time], split=split)
        assert expected.max() > 5
        assert np.array_equal(labels[time], expected)
        classes = masks[time] if name == "classes" else None
        table = measure(expected, image[time], classes=classes, pixel_size=(0.5, 0.25))
        mine = rows[rows["t"] == time]
        assert mine.dtype.names == ("t", *table)
        for column, values in table.items():
            assert np.allclose(mine[column], values, rtol=1e-9, atol=1e-9, equal_nan=True), column
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.csv", "image.tif", "labels.tif", "mask.tif"]


def test_a_plane_without_objects(tmp_path: Path, engine_file: Files) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    engine = open_engine(engine_file)
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((40, 50), np.uint8))
    highest = float(engine.probability(np.zeros((40, 50), np.uint8)).max())
    segment_large(
        engine, tmp_path / "image.tif", tmp_path / "mask.tif", threshold=(highest + 1) / 2, split=4,
        table=tmp_path / "cells.csv", progress=False,
    )  # fmt: skip
    assert (tmp_path / "cells.csv").read_text().count("\n") == 1


def test_an_image_that_vanishes(tmp_path: Path, engine_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(engine_file)
    image = random_image((420, 60), seed=9)
    source, output = tmp_path / "image.tif", tmp_path / "mask.tif"
    tifffile.imwrite(source, image)
    original = Engine.segment
    written = source.stat()

    def vanishing(self: Engine, *arguments: Any, **keywords: Any) -> Any:
        source.rename(tmp_path / "away")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Engine, "segment", vanishing)
    with pytest.raises(ImageError, match=r"image\.tif: cannot be read"):
        segment_large(engine, source, output, tile=tile_of(engine), progress=False)
    monkeypatch.setattr(Engine, "segment", original)
    (tmp_path / "away").rename(source)
    assert source.stat().st_mtime_ns == written.st_mtime_ns
    segment_large(engine, source, output, tile=tile_of(engine), progress=False)
    assert np.array_equal(tifffile.imread(output), engine.segment(image, tiling="exact", tile=tile_of(engine)))


@pytest.mark.parametrize("ending", ["tif", "zarr"])
def test_a_refused_call_leaves_nothing(
    tmp_path: Path, engine_file: Files, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ending == "zarr":
        pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    source, output = tmp_path / "image.ome.tif", tmp_path / f"mask.{ending}"
    tifffile.imwrite(source, random_image((2, 50, 60), seed=4), metadata={"axes": "CYX"})
    with pytest.raises(
        ImageError, match=r"image\.ome\.tif: an image of 2 channels .*; choose one.*--channel.*channel="
    ):
        segment_large(engine, source, output, progress=False)
    for options in ({"threshold": 2}, {"max_value": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            segment_large(engine, source, output, channel=0, progress=False, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "segment", lambda *_, **__: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            segment_large(engine, source, output, channel=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["image.ome.tif"]
    segment_large(engine, source, output, channel=0, progress=False)


@pytest.mark.parametrize("ending", ["tif", "zarr"])
def test_objects_of_a_finished_mask(
    tmp_path: Path, engine_file: Files, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    if ending == "zarr":
        pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    source, mask, labels = tmp_path / "image.tif", tmp_path / f"mask.{ending}", tmp_path / "new" / f"labels.{ending}"
    tifffile.imwrite(source, random_image((90, 70), seed=4))
    segment_large(engine, source, mask, progress=False)
    monkeypatch.setattr(Engine, "segment", lambda *_, **__: pytest.fail("segmented again"))
    wanted = {"labels": labels, "table": tmp_path / "tables" / "cells.csv", "resume": True, "progress": False}

    def stopped(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(large, "measure_objects", stopped)
        with pytest.raises(Stopped):
            segment_large(engine, source, mask, **wanted)
    assert unfinished(mask)  # so that half of the labels are not taken for all of them
    segment_large(engine, source, mask, **wanted)
    plane = open_image(labels).window(0, top=0, left=0, height=90, width=70)
    assert np.array_equal(plane, label(open_image(mask).window(0, top=0, left=0, height=90, width=70)))
    assert not unfinished(mask)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*"))
    (tmp_path / "tables" / "cells.csv").unlink()
    segment_large(engine, source, mask, **wanted)
    assert (tmp_path / "tables" / "cells.csv").exists()
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*")) == before


@pytest.mark.parametrize("ending", ["tif", "zarr"])
def test_what_is_no_mask_of_the_image_is_not_gone_on_with(tmp_path: Path, engine_file: Files, ending: str) -> None:
    if ending == "zarr":
        pytest.importorskip("zarr", reason="needs zarr (extra large)")
    engine = open_engine(engine_file)
    for name, shape in (("a", (40, 50)), ("b", (50, 40))):
        tifffile.imwrite(tmp_path / f"{name}.tif", random_image(shape))
    segment_large(engine, tmp_path / "a.tif", tmp_path / f"mask.{ending}", progress=False)
    with pytest.raises(ImageError, match="not of this image"):
        segment_large(engine, tmp_path / "b.tif", tmp_path / f"mask.{ending}", resume=True, progress=False)
    (tmp_path / "file.tif").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"file\.tif: no result of ours"):
        segment_large(engine, tmp_path / "b.tif", tmp_path / "file.tif", resume=True, progress=False)
    assert not unfinished(tmp_path / f"mask.{ending}")


def test_a_table_needs_a_folder_only(tmp_path: Path, engine_file: Files) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    tifffile.imwrite(tmp_path / "image.tif", random_image((40, 50)))
    segment_large(
        open_engine(engine_file), tmp_path / "image.tif", tmp_path / "mask.tif",
        table=tmp_path / "new" / "cells.csv", progress=False,
    )  # fmt: skip
    assert (tmp_path / "new" / "cells.csv").exists()


def test_folders_of_zarrs_and_other_images(
    tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr (extra large)")
    folder, out = tmp_path / "images", tmp_path / "out"
    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    image = random_image((50, 60), seed=4)
    group.create_array("0", shape=image.shape, chunks=(32, 32), dtype="uint8")[:] = image
    zarr.create_array(str(folder / "b.zarr"), shape=image.shape, chunks=(32, 32), dtype="uint8")[:] = image
    PIL.Image.fromarray(image).save(folder / "c.bmp")
    inputs, fixed = [str(folder), str(folder / "a.zarr" / "0")], ["--large", "--device", "cpu"]
    assert main(["segment", str(engine_file("plain")), *inputs, "-o", str(out), *fixed]) == 1
    assert sorted(path.name for path in out.iterdir()) == ["0.zarr", "b.zarr"]
    error = capsys.readouterr().err
    assert "c.bmp: only TIFFs and Zarrs" in error
    assert "a.zarr: a Zarr group without OME metadata" in error


def test_command_line(tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str]) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr (extra large)")
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    image = random_image((3, 50, 60), "uint16", seed=4)
    tifffile.imwrite(folder / "a.ome.tif", image, metadata={"axes": "CYX", "Channel": {"Name": ["A", "B", "C"]}})
    zarr.create_array(str(folder / "b.zarr"), shape=image.shape, chunks=(1, 32, 32), dtype="uint16")[:] = image
    (folder / "broken.tif").write_bytes(b"no image")
    (folder / "z").mkdir()
    engine = open_engine(engine_file)

    def run(*options: str) -> int:
        inputs = [str(folder / "*.tif"), str(folder / "b.zarr")]
        fixed = ["-o", str(out), "--large", "--device", "cpu", "--precision", "float32"]
        return main(["segment", str(engine_file("plain")), *inputs, *fixed, *options])

    assert run("--channel", "1", "--labels", "--table", "csv") == 1
    output = capsys.readouterr()
    assert "2 of 3 files" in output.out
    assert "broken.tif" in output.err
    expected = engine.segment(image[1], tiling="exact")
    assert np.array_equal(tifffile.imread(out / "a.ome.tif"), expected)
    assert np.array_equal(zarr.open_group(str(out / "b.zarr"), mode="r")["0"][:], expected)
    assert np.array_equal(zarr.open_group(str(out / "labels" / "b.zarr"), mode="r")["0"][:], label(expected))
    assert sorted(path.name for path in (out / "table").iterdir()) == ["a.ome.csv", "b.csv"]
    assert run("--channel", "1", "--resume") == 1
    assert "2 files had their results already" in capsys.readouterr().out
    (out / "table" / "b.csv").unlink()
    assert run("--channel", "1", "--labels", "--table", "csv", "--resume") == 1
    assert "1 files had their results already" in capsys.readouterr().out
    assert (out / "table" / "b.csv").exists()
    for options, reason in (
        (["--overlay"], "masks, labels and tables only"),
        (["--tiling", "fast"], "tiled exactly"),
    ):
        assert run(*options) == 1
        assert reason in capsys.readouterr().err
    assert main(["segment", str(engine_file("plain")), str(folder), "-o", str(out), "--channel", "A"]) == 1
    assert "go with --large" in capsys.readouterr().err


def test_a_second_run_does_what_failed_in_the_first(
    tmp_path: Path, engine_file: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of several bit depths with a truncated file, on a disk that fills up in the middle of another."""
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    kinds = {"a": "uint8", "b": "uint16", "c": "float32", "d": "uint8"}
    images = {name: random_image((2100, 40), kind, seed=5) for name, kind in kinds.items()}
    for name, image in images.items():
        tifffile.imwrite(folder / f"{name}.tif", image)
    whole = (folder / "d.tif").read_bytes()
    (folder / "d.tif").write_bytes(whole[: len(whole) // 2])
    engine = open_engine(engine_file)
    fixed = ["-o", str(out), "--large", "--device", "cpu", "--precision", "float32"]
    command = ["segment", str(engine_file("plain")), str(folder), *fixed]

    write_rows = FileArray.write_rows
    written = []

    def on_a_full_disk(self: FileArray, plane: int, top: int, rows: Any) -> None:
        if self.path.name.startswith("b") and top > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        written.append(self.path.name)
        write_rows(self, plane, top, rows)

    with monkeypatch.context() as patch:
        patch.setattr(FileArray, "write_rows", on_a_full_disk)
        assert main(command) == 1
    said = capsys.readouterr()
    assert "2 of 4 files" in said.out
    assert "No space left on device" in said.err
    assert "d.tif" in said.err
    assert any(name.startswith("b") for name in written)
    assert main([*command, "--resume"]) == 1
    said = capsys.readouterr()
    assert "2 files had their results already" in said.out
    assert "b.tif" not in said.err
    assert "d.tif" in said.err
    for name in "abc":
        assert np.array_equal(tifffile.imread(out / f"{name}.tif"), engine.segment(images[name], tiling="exact")), name
    (folder / "d.tif").write_bytes(whole)
    assert main([*command, "--resume"]) == 0
    assert not [path for path in out.iterdir() if path.suffix != ".tif"]


def test_a_missing_chunk_is_its_fill_value(tmp_path: Path, engine_file: Files) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr (extra large)")
    image = random_image((70, 80), seed=6)
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=image.shape, chunks=(32, 32), dtype="uint8", fill_value=9, zarr_format=2
    )
    array[:] = image
    (tmp_path / "a.zarr" / "1.1").unlink()
    image[32:64, 32:64] = 9
    engine = open_engine(engine_file)
    segment_large(engine, tmp_path / "a.zarr", tmp_path / "mask.tif", progress=False)
    assert np.array_equal(tifffile.imread(tmp_path / "mask.tif"), engine.segment(image, tiling="exact"))


SLIDE = """
import sys
from unet_fast import Engine, segment_large

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return line.split()[1]

engine = Engine(sys.argv[1], device="cpu", precision="float32", threads=2)
before = peak()
segment_large(engine, *sys.argv[2:4], labels=sys.argv[4], threshold=float(sys.argv[5]), progress=False)
print(before, peak())
"""


@pytest.mark.slow
def test_memory_of_a_slide_is_bounded(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels: the image and its mask have 0.9 GB each, the labels 3.6 GB."""
    pytest.importorskip("skimage", reason="needs scikit-image (extra objects)")
    side = 30_000
    spec = UNetSpec(base_width=8, depth=2, convs_per_stage=1, tile=32)
    freeze(from_spec(spec, random_weights(spec, seed=1)), tmp_path / "tiny.unet")
    image = tifffile.memmap(tmp_path / "slide.tif", shape=(side, side), dtype=np.uint8)
    texture = np.asarray(PIL.Image.fromarray(random_image((50, 50), seed=1)).resize((1000, 1000)))
    for top in range(0, side, 500):
        image[top : top + 500] = np.tile(np.roll(texture, top // 7, axis=1), (1, side // 1000))[:500]
    image.flush()
    engine = Engine(tmp_path / "tiny.unet", device="cpu", precision="float32")
    corner = np.array(image[20_000:20_600, 20_000:20_600])
    threshold = float(np.quantile(engine.probability(corner, tiling="exact"), 0.999))
    files = [str(tmp_path / name) for name in ("tiny.unet", "slide.tif", "mask.tif", "labels.tif")]
    run = subprocess.run(
        [sys.executable, "-c", SLIDE, *files, str(threshold)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    before, peak = (int(number) / 1024 for number in run.stdout.split())
    mask, labels = (tifffile.memmap(tmp_path / f"{name}.tif", mode="r") for name in ("mask", "labels"))
    objects = int(labels[-1000:].max())
    print(f"\npeak memory {peak:.0f} MiB, of which {before:.0f} MiB before the first tile; {objects} objects")
    assert peak < 900 + 64 * objects / 2**20
    inner = np.s_[64:-64, 64:-64]
    seen = np.array(mask[20_000:20_600, 20_000:20_600])
    assert 0 < (seen != 0).mean() < 0.01
    assert (engine.segment(corner, tiling="exact", threshold=threshold)[inner] != seen[inner]).mean() < 1e-4
    assert np.array_equal(labels[20_000:20_600] != 0, mask[20_000:20_600] != 0)
    assert np.array_equal(labels[:100], label(mask[:2000])[:100])


def test_misuse(tmp_path: Path, engine_file: Files) -> None:
    engine = open_engine(engine_file)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, random_image((40, 40)))
    (tmp_path / "other.tif").write_bytes(b"somebody else's")
    with pytest.raises(ImageError, match="no such file"):
        segment_large(engine, tmp_path / "none.tif", tmp_path / "mask.tif")
    with pytest.raises(ValueError, match=r"must end in"):
        segment_large(engine, path, tmp_path / "mask.png")
    with pytest.raises(ImageError, match="overwrite"):
        segment_large(engine, path, path)
    with pytest.raises(ValueError, match="for the mask and for the labels"):
        segment_large(engine, path, tmp_path / "mask.tif", labels=tmp_path / "mask.tif")
    with pytest.raises(ImageError, match="exists"):
        segment_large(engine, path, tmp_path / "mask.tif", labels=tmp_path / "other.tif")
    (tmp_path / "other.tif").unlink()
    with pytest.raises(ValueError, match="channel is 1"):
        segment_large(engine, path, tmp_path / "mask.tif", channel=1)
    with pytest.raises(UnsupportedError, match="standardises"):
        segment_large(open_engine(engine_file, "standardise"), path, tmp_path / "mask.tif")
    with pytest.raises(UnsupportedError, match="regression"):
        segment_large(open_engine(engine_file, "regression"), path, tmp_path / "mask.tif")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"image\.tif"):
        segment_large(engine, path, tmp_path / "mask.tif")
    assert [one.name for one in tmp_path.iterdir()] == ["image.tif"]
