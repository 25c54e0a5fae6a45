"""Images read, segmented and written tile by tile: equal to the whole, whatever is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pixels import random_image
from unet_fast import Engine, UnsupportedError
from unet_fast.images import ImageError
from unet_fast.large import exact_tiles, open_image, segment_large

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
        assert len(exact_tiles(engine, height, tile).spans) > 1
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="minisblack" if channels == 1 else "rgb")
    segment_large(engine, tmp_path / "image.tif", tmp_path / "mask.tif", tile=tile, progress=False)
    assert np.array_equal(
        tifffile.imread(tmp_path / "mask.tif"), engine.segment(image, tiling="exact", tile=tile)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tif", "mask.tif"]


@pytest.mark.parametrize("name", ["plain", "valid"])
def test_spans_cover_an_axis_once(engine_file: Files, name: str) -> None:
    engine = open_engine(engine_file, name)
    for size in [*range(1, 400, 7), 1024, 1025, 5000]:
        tiles = exact_tiles(engine, size, tile_of(engine))
        assert [span.begin for span in tiles.spans] == [0, *(span.end for span in tiles.spans[:-1])]
        assert tiles.spans[-1].end == size
        core = tiles.side - 2 * engine.info.margin
        assert all(span.origin <= span.begin < span.end <= span.origin + core for span in tiles.spans)


class Stopped(Exception):
    pass


def test_goes_on_where_it_stopped(tmp_path: Path, engine_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(engine_file)
    image = random_image((420, 260), seed=9)
    tifffile.imwrite(tmp_path / "image.tif", image)
    tile = tile_of(engine)
    rows, columns = (len(exact_tiles(engine, side, tile).spans) for side in image.shape)
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
    assert np.array_equal(open_image(tmp_path / "mask.zarr").window(0, 0, *image.shape), expected)


def test_misuse(tmp_path: Path, engine_file: Files) -> None:
    engine = open_engine(engine_file)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, random_image((40, 40)))
    with pytest.raises(ImageError, match="no such file"):
        segment_large(engine, tmp_path / "none.tif", tmp_path / "mask.tif")
    with pytest.raises(ValueError, match=r"must end in"):
        segment_large(engine, path, tmp_path / "mask.png")
    with pytest.raises(ImageError, match="overwrite"):
        segment_large(engine, path, path)
    with pytest.raises(UnsupportedError, match="regression"):
        segment_large(open_engine(engine_file, "regression"), path, tmp_path / "mask.tif")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"image\.tif"):
        segment_large(engine, path, tmp_path / "mask.tif")
    assert [one.name for one in tmp_path.iterdir()] == ["image.tif"]
