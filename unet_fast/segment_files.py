"""`unet-fast segment`: many image files through one engine, going on past those that fail."""

from __future__ import annotations

import glob
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from . import objects, overlay
from .engine import Engine, EngineInfo, Tiling, check_max_value, check_threshold
from .errors import UnsupportedError, in_one_line
from .images import SUFFIXES, ImageError, Pixels, list_images, read_pages, to_channels, write_image
from .large import segment_large, unfinished
from .stores import is_zarr

#: Pictures of a montage, and the side of each in pixels.
_MOST_THUMBNAILS, _THUMBNAIL = 100, 256


@dataclass(frozen=True)
class Extras:
    """What is written for each image besides its mask, in folders beside it; see `unet_fast.objects` for the objects.

    probability  float32 TIFFs, with a page per class for each page of the image.
    overlay      outlines of the mask over the image.
    montage      montage.png: the first overlays of the run, small; montage_of_all.png where an image is called montage.
    labels       numbered objects, TIFFs of uint16, or of int32 where an image has more than 65535 and of large images.
    table        "csv" or "parquet": measures of each object, with its page from 0.
    split        distance in pixels at which touching objects are cut apart; None: they stay one.
    pixel_size   side of a pixel, or (height, width) of it, in the unit that the table is to have.
    """

    probability: bool = False
    overlay: bool = False
    montage: bool = False
    labels: bool = False
    table: Literal["csv", "parquet"] | None = None
    split: float | None = None
    pixel_size: float | tuple[float, float] = 1.0

    def check(self, info: EngineInfo) -> None:
        """Raises at once what would otherwise fail for every image."""
        if info.output == "identity" and (self.overlay or self.montage):
            raise UnsupportedError(f"{info.name!r} is a regression, it has values and no outlines to draw")
        if not self.labels and self.table is None:
            return
        if info.output == "identity":
            raise UnsupportedError(f"{info.name!r} is a regression, it has values and no objects")
        objects.check_split(self.split)
        objects.check_pixel_size(self.pixel_size)
        objects.need("skimage", "objects")
        if self.table is not None:
            objects.check_table_name(f"table.{self.table}")


def segment_files(
    engine: Engine,
    inputs: Sequence[str],
    folder: Path,
    *,
    tiling: Tiling = "fast",
    threshold: float | None = None,
    max_value: float | None = None,
    extras: Extras = Extras(),
    resume: bool = False,
) -> int:
    """Writes the mask of each image in `inputs` (files, folders, patterns) into `folder`; returns how many failed.

    Masks are named after their images, `cell.jpg` -> `cell.png`; the pages of a stack make a stack, `cell.tif`.  Where
    two images would get one name, see `output_names`.  `extras` go to folders in `folder` that are called as they are.
    A regression has no mask and always writes its values as the probability.  With `resume`, images are passed over
    whose results are all there.

    Progress and failures are told on stderr, a summary on stdout.
    """
    extras.check(engine.info)
    _check(engine.info, inputs, folder, threshold, max_value)
    files, failures = find_files(inputs)
    names = output_names(files)
    thumbnails: dict[str, overlay.Picture] = {}
    progress = tqdm(files, desc="segmenting", unit="file", disable=None)

    def segment(path: Path) -> None:
        name = names[path]
        progress.set_postfix_str(path.name)
        pages = [to_channels(page, engine.channels) for page in read_pages(path)]
        if engine.info.output != "identity":
            masks = [engine.segment(page, tiling=tiling, threshold=threshold, max_value=max_value) for page in pages]
            _write(folder, name, masks, files)
            shown = [_centre(page, mask) for page, mask in zip(pages, masks, strict=True)]
            if extras.overlay or extras.montage:
                pictures = _overlays(shown, masks, engine.info.palette)
                if extras.overlay:
                    _write(folder / "overlay", name, pictures, files)
                if extras.montage and len(thumbnails) < _MOST_THUMBNAILS:
                    thumbnails[name] = overlay.thumbnail(pictures[0], _THUMBNAIL)
            if extras.labels or extras.table:
                _write_objects(folder, name, shown, masks, engine.info.classes > 1, extras, files)
        if extras.probability or engine.info.output == "identity":
            values = [engine.probability(page, tiling=tiling, max_value=max_value) for page in pages]
            _write(folder / "probability", name, _page_per_class(values), files, ending=".tif")

    def is_done(path: Path) -> bool:
        return resume and _are_there(folder, names[path], (".png", ".tif"), extras, engine.info)

    failed = _segment_each(progress, failures, folder, is_done, segment)
    if thumbnails:
        _write(folder, _montage_name(names), [overlay.montage(list(thumbnails.values()), list(thumbnails))], files)
    return failed


def segment_large_files(
    engine: Engine,
    inputs: Sequence[str],
    folder: Path,
    *,
    channel: str | int | None = None,
    series_time: int | None = None,
    z: int | None = None,
    threshold: float | None = None,
    max_value: float | None = None,
    extras: Extras = Extras(),
    resume: bool = False,
) -> int:
    """Like `segment_files`, for TIFFs and Zarrs that need not fit into memory: see `large.segment_large`.

    A Zarr gives Zarrs, a TIFF TIFFs.  Of `extras` only labels and table can be had.  What was begun and stopped goes on
    where it was; with `resume`, images are passed over whose results are all there, and of a finished mask only the
    labels and the table are made that are missing.
    """
    if extras.probability or extras.overlay or extras.montage:
        raise ValueError("large images have masks, labels and tables only")
    extras.check(engine.info)
    _check(engine.info, inputs, folder, threshold, max_value)
    files, failures = find_files(inputs, zarrs=True)
    names = output_names(files)

    def ending(path: Path) -> str:
        return ".zarr" if path.is_dir() else ".tif"

    def segment(path: Path) -> None:
        name = names[path] + ending(path)
        segment_large(
            engine,
            path,
            folder / name,
            channel=channel,
            time=series_time,
            z=z,
            threshold=threshold,
            max_value=max_value,
            labels=folder / "labels" / name if extras.labels else None,
            table=folder / "table" / f"{names[path]}.{extras.table}" if extras.table else None,
            split=extras.split,
            pixel_size=extras.pixel_size,
            resume=resume,
        )

    def is_done(path: Path) -> bool:
        there = resume and _are_there(folder, names[path], (ending(path),), extras, engine.info)
        return there and not unfinished(folder / (names[path] + ending(path)))

    return _segment_each(files, failures, folder, is_done, segment)


def _check(
    info: EngineInfo, inputs: Sequence[str], folder: Path, threshold: float | None, max_value: float | None
) -> None:
    """Raises at once what would otherwise fail for every image, or do harm in the next run."""
    if info.output != "identity":
        check_threshold(info, threshold)
    elif threshold is not None:
        raise UnsupportedError(f"{info.name!r} is a regression, it has values and no threshold")
    check_max_value(max_value)
    for text in inputs:
        if Path(text).is_dir() and Path(text).resolve() == folder.resolve():
            raise ValueError(f"{text}: masks written here would be taken for images; choose another folder with -o")


def _segment_each(
    files: Iterable[Path],
    failures: list[str],
    folder: Path,
    is_done: Callable[[Path], bool],
    segment: Callable[[Path], None],
) -> int:
    """Segments those of `files` that are not done and tells of it; returns how many failed, those before included."""
    segmented = passed_over = 0
    start = time.perf_counter()
    for path in files:
        try:
            if is_done(path):
                passed_over += 1
            else:
                segment(path)
                segmented += 1
        except (OSError, ValueError, MemoryError) as error:
            failures.append(_failure(path, error))
    if passed_over:
        print(f"{passed_over} files had their results already")
    if segmented:
        seconds = time.perf_counter() - start
        print(f"{segmented} of {segmented + len(failures)} files segmented in {seconds:.1f} s, results in {folder}")
    if failures:
        print(f"{len(failures)} failed:", *failures, sep="\n  ", file=sys.stderr)
    return len(failures)


def _are_there(folder: Path, name: str, endings: Sequence[str], extras: Extras, info: EngineInfo) -> bool:
    """Whether the image has all results that are wanted, the pictures of them with one of `endings`."""
    wanted = [] if info.output == "identity" else [folder]
    if extras.probability or info.output == "identity":
        wanted.append(folder / "probability")
    if extras.overlay:
        wanted.append(folder / "overlay")
    if extras.labels:
        wanted.append(folder / "labels")
    there = all(any((place / (name + ending)).exists() for ending in endings) for place in wanted)
    return there and (extras.table is None or (folder / "table" / f"{name}.{extras.table}").exists())


def _montage_name(names: dict[Path, str]) -> str:
    """Of the picture of the whole run: "montage", or something longer where a mask has that name."""
    name = "montage"
    while name in (one.casefold() for one in names.values()):
        name += "_of_all"
    return name


def _write_objects(
    folder: Path,
    name: str,
    images: list[Pixels],
    masks: list[NDArray[Any]],
    several_classes: bool,
    extras: Extras,
    inputs: Sequence[Path],
) -> None:
    labels = [objects.label(mask, split=extras.split) for mask in masks]
    if extras.labels:
        _write(folder / "labels", name, objects.compact(labels), inputs, ending=".tif")
    if extras.table:
        tables = []
        for page, (image, mask, numbered) in enumerate(zip(images, masks, labels, strict=True)):
            table = objects.measure(
                numbered,
                image[:, :, 0] if image.shape[2] == 1 else image,
                classes=mask if several_classes else None,
                pixel_size=extras.pixel_size,
            )
            tables.append({"page": np.full(len(table["label"]), page), **table})
        path = folder / "table" / f"{name}.{extras.table}"
        path.parent.mkdir(parents=True, exist_ok=True)
        objects.write_table(path, objects.joined(tables))


def find_files(inputs: Sequence[str], *, zarrs: bool = False) -> tuple[list[Path], list[str]]:
    """The image files that `inputs` name, each once and in order, and a line for each input that names none.

    An input is a file, a Zarr, a folder (the images directly in it, with `zarrs` Zarrs too) or a pattern with `*`, `?`,
    `[...]` or `**`.
    """
    found: dict[Path, Path] = {}
    failures = []
    for text in inputs:
        path = Path(text)
        try:
            if path.is_dir() and not is_zarr(path):
                matches = list_images(path, zarrs=zarrs)
            elif path.exists() or not glob.has_magic(text):
                matches = [path]  # one that does not exist fails when it is read
            else:
                matches = [
                    match
                    for match in sorted(map(Path, glob.glob(text, recursive=True)))
                    if (match.suffix.lower() in SUFFIXES and match.is_file()) or match.suffix.lower() == ".zarr"
                ]
                if not matches:
                    raise ImageError(f"{text}: no image file matches this pattern")
        except (OSError, ImageError) as error:
            failures.append(_failure(path, error))
            continue
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values()), failures


def output_names(files: Sequence[Path]) -> dict[Path, str]:
    """A different name for each file, without ending: the file's own where that is unique.

    Where it is not, the file's ending is added (`cell_jpg`), then its folder (`plate1_cell_jpg`), then the folder's
    folder, until all differ, letter case aside.  So a name does not depend on the order of the files.
    """
    levels = dict.fromkeys(files, 0)
    while True:
        names = {path: _name_at(path, level) for path, level in levels.items()}
        uses = Counter(name.casefold() for name in names.values())
        clashing = [path for path, name in names.items() if uses[name.casefold()] > 1]
        if not clashing:
            return names
        for path in clashing:
            levels[path] += 1
            if levels[path] > len(path.resolve().parts) + 1:
                raise ValueError(f"{path}: no name for the result that differs from the others'; rename the file")


def _name_at(path: Path, level: int) -> str:
    if level == 0:
        return path.stem
    folders = path.resolve().parts[1:-1]
    return "_".join((*folders[len(folders) - level + 1 :], path.stem, path.suffix.removeprefix(".")))


def _write(folder: Path, name: str, pages: list[Any], inputs: Sequence[Path], ending: str | None = None) -> None:
    path = folder / (name + (ending or (".png" if len(pages) == 1 else ".tif")))
    if path.exists() and any(path.samefile(file) for file in inputs if file.exists()):
        raise ImageError(f"{path}: the result would overwrite this input; choose another folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    write_image(path, pages)


def _page_per_class(values: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [page for value in values for page in ([value] if value.ndim == 2 else list(value.transpose(2, 0, 1)))]


def _centre(page: Pixels, mask: NDArray[Any]) -> Pixels:
    """The pixels of the mask: a network without padding has a smaller mask, at the centre of its image."""
    top, left = (page.shape[0] - mask.shape[0]) // 2, (page.shape[1] - mask.shape[1]) // 2
    return page[top : top + mask.shape[0], left : left + mask.shape[1]]


def _overlays(
    pages: list[Pixels], masks: list[NDArray[Any]], palette: Sequence[overlay.Colour]
) -> list[overlay.Picture]:
    # Of several classes the first is the background.
    colours = (palette if len(palette) == 1 else palette[1:]) or overlay.PALETTE
    return [overlay.draw_outlines(page, mask, palette=colours) for page, mask in zip(pages, masks, strict=True)]


def _failure(path: Path, error: Exception) -> str:
    text = in_one_line(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"
