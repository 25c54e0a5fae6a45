"""Images larger than memory: read, segmented and written tile by tile, with numbered objects and their table.

    segment_large(engine, "slide.tif", "slide-mask.tif")
    segment_large(engine, "slide.zarr", "mask.zarr", channel="DAPI", labels="labels.zarr", table="cells.csv")

The mask is that of `engine.segment(image, tiling="exact")`, bit for bit, whatever the size of the image, and the labels
those of `objects.label(mask)`.  What is in memory at a time grows with the width of the image, not with its height.
A run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from . import objects
from .engine import Engine, check_max_value, check_threshold
from .errors import UnsupportedError
from .images import ImageError, to_channels, write_beside
from .large_objects import bands, measure_objects, number_objects
from .stores import ENDINGS, FileArray, Image, Result, open_image

PathLike = str | os.PathLike[str]


def segment_large(
    engine: Engine,
    source: PathLike,
    output: PathLike,
    *,
    channel: str | int | None = None,
    time: int | None = None,
    z: int | None = None,
    threshold: float | None = None,
    max_value: float | None = None,
    tile: int | None = None,
    labels: PathLike | None = None,
    table: PathLike | None = None,
    split: float | None = None,
    pixel_size: float | tuple[float, float] = 1.0,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Writes the mask of an image of any size, plane by plane: what `engine.segment(plane, tiling="exact", ...)` gives.

    source           TIFF, OME-TIFF, Zarr array or OME-Zarr; see `stores.open_image`, also for `channel`, `time`, `z`.
    output           ends in .tif or .tiff: uncompressed, BigTIFF from 4 GB; .zarr: OME-Zarr with levels of half the
                     size each for viewers.  Its axes: time, z where the image has them and all were asked for, y, x.
    threshold, max_value, tile   as of `Engine.segment`.
    labels           like `output`: the objects of each plane, int32, as `objects.label` numbers them.
    table            .csv or .parquet: what `objects.measure` tells of each object, with columns t and z as `output`
                     has these axes.  An object needs the memory of its bounding box.
    split            as of `objects.label`.
    pixel_size       as of `objects.measure`.
    resume           True: a finished OUTPUT is taken as it is, and labels and table are made where they are missing.
    progress         bars with an estimate of the time left on stderr.

    While it runs, OUTPUT.progress says which bands of tiles are done.  Called again with the same arguments after a
    failure, it does only the rest; without `resume`, a result that is there already is refused.  A call that fails
    before its first band is done leaves nothing.

    `UnsupportedError` for a network that standardises each image (its statistics need the whole), has no mask or
    cannot be tiled exactly; `ImageError` and `OSError` for files that cannot be read or written; `ValueError` and
    `TypeError` for other arguments that are not described here.
    """
    image = open_image(source, channel=channel, time=time, z=z)
    check_threshold(engine.info, threshold)
    check_max_value(max_value)
    outputs = [Path(path) for path in (output, labels) if path is not None]
    _check(engine, image, outputs, table, split, pixel_size, resume)
    output = Path(output)
    if resume and output.exists() and not unfinished(output):
        labels, table = (None if path is None or Path(path).exists() else path for path in (labels, table))
    for path in (labels, table):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    task = _fingerprint(engine, image, channel, time, z, threshold, max_value, tile)
    journal = _journal_of(output)
    mask = _write_mask(engine, image, output, journal, task, threshold, max_value, tile, resume, progress)
    if labels is not None or table is not None:
        with _scratch(output) as scratch:
            number = Result(Path(labels), image, np.int32, fresh=True) if labels is not None else None
            found: list[objects.Table] = []
            for plane in tqdm(range(len(image.planes)), "objects", unit="plane", disable=None if progress else True):
                numbered = number_objects(mask, plane, FileArray(scratch, (image.height, image.width), np.int32), split)
                if number is not None:
                    for top, bottom in bands(image.height, image.width):
                        number.write_rows(plane, top, numbered.pixels[top:bottom])
                if table is not None:
                    several = mask if engine.info.classes > 1 else None
                    measured = measure_objects(numbered, image, plane, engine.channels, several, pixel_size)
                    size = len(measured["label"])
                    at = {axis: np.full(size, index) for axis, index in image.planes[plane].items()}
                    found.append({**at, **measured})
            if number is not None:
                number.finish()
            if table is not None:
                objects.write_table(table, objects.joined(found))
    journal.unlink()


def unfinished(output: Path) -> bool:
    """Whether `segment_large` was begun for that output and stopped."""
    return _journal_of(output).exists()


def _journal_of(output: Path) -> Path:
    return output.with_name(output.name + ".progress")


def _check(
    engine: Engine,
    image: Image,
    outputs: list[Path],
    table: PathLike | None,
    split: float | None,
    pixel_size: float | tuple[float, float],
    resume: bool,
) -> None:
    for path in outputs:
        if path.suffix.lower() not in ENDINGS:
            raise ValueError(f"{path}: the result must end in {', '.join(ENDINGS)}")
        if path.resolve() == image.path.resolve():
            raise ImageError(f"{path}: the result would overwrite the image; choose another name")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ValueError(f"{outputs[0]} is given for the mask and for the labels; choose another name")
    for path in outputs[1:]:
        if path.exists() and not resume and not unfinished(outputs[0]):
            raise ImageError(f"{path} exists; remove it, or choose another name")
    if len(outputs) == 2 or table is not None:
        objects.need("skimage", "objects")
    objects.check_split(split)
    objects.check_pixel_size(pixel_size)
    if table is not None:
        objects.check_table_name(table)
    if engine.standardises:
        raise UnsupportedError(f"{engine.info.name!r} standardises each image by statistics of the whole of it")


def _write_mask(
    engine: Engine,
    image: Image,
    output: Path,
    journal: Path,
    task: str,
    threshold: float | None,
    max_value: float | None,
    tile: int | None,
    resume: bool,
    progress: bool,
) -> Result:
    rows, columns = engine.exact_tiles(image.height, image.width, tile=tile)
    work = [(plane, span) for plane in range(len(image.planes)) for span in rows.spans]
    done = len(work) if resume and output.exists() and not journal.exists() else _bands_done(journal, task, output)
    begun = Result(output, image, np.uint8, fresh=False) if done else None
    _write_journal(journal, task, done)  # before OUTPUT: what lies there without it is somebody else's
    margin = engine.info.margin
    tiles = len(work) * len(columns.spans)
    bar = tqdm(
        total=tiles,
        initial=done * len(columns.spans),
        desc="segmenting",
        unit="tile",
        disable=None if progress else True,
    )
    try:
        result = begun or Result(output, image, np.uint8, fresh=True)
        for plane, (top, begin, end) in work[done:]:
            band = np.empty((end - begin, image.width), np.uint8)
            for left, first, last in columns.spans:
                pixels = image.window(plane, top=top - margin, left=left - margin, height=rows.side, width=columns.side)
                pixels = _for_network(pixels, engine.info.channels, image)
                mask = engine.segment(pixels, tiling="none", threshold=threshold, max_value=max_value)
                band[:, first:last] = mask[begin - top : end - top, first - left : last - left]
                bar.update()
            result.write_rows(plane, begin, band)
            done += 1
            _write_journal(journal, task, done)
        result.finish()
        return result
    except BaseException:
        if done == 0:
            _remove(output)
            journal.unlink(missing_ok=True)
        raise
    finally:
        bar.close()


def _for_network(pixels: NDArray[Any], channels: int, image: Image) -> NDArray[Any]:
    try:
        return to_channels(pixels, channels, image.path)
    except ImageError as error:
        raise ImageError(f"{error}; choose one of them with --channel, in Python channel=") from None


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _fingerprint(engine: Engine, image: Image, *options: Any) -> str:
    """Names what is computed, so that only a run of the very same goes on where another stopped."""
    content = engine.source if isinstance(engine.source, bytes) else Path(engine.source).read_bytes()
    written = image.path.stat().st_mtime_ns
    network = (hashlib.sha256(content).hexdigest(), engine.precision, engine.device)
    shape = (str(image.path.resolve()), written, image.height, image.width, str(image.dtype))
    return hashlib.sha256(repr((network, shape, options)).encode()).hexdigest()


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


def _write_journal(journal: Path, task: str, done: int) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(journal) as temporary:
        temporary.write_text(json.dumps({"task": task, "bands": done}))


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A file beside `output` that is gone at the end."""
    path = output.with_name(f".{output.name}.{os.getpid()}.objects")
    try:
        path.touch()
        yield path
    finally:
        path.unlink(missing_ok=True)
