"""`unet-fast segment`: many image files through one engine, going on past those that fail."""

from __future__ import annotations

import glob
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from . import overlay
from .engine import Engine, Tiling
from .errors import in_one_line
from .images import SUFFIXES, ImageError, Pixels, list_images, read_pages, to_channels, write_image


def segment_files(
    engine: Engine,
    inputs: Sequence[str],
    folder: Path,
    *,
    tiling: Tiling = "fast",
    threshold: float | None = None,
    max_value: float | None = None,
    write_probability: bool = False,
    write_overlay: bool = False,
) -> int:
    """Writes the mask of each image in `inputs` (files, folders, patterns) into `folder`; returns how many failed.

    Masks are named after their images, `cell.jpg` -> `cell.png`; the pages of a stack make a stack, `cell.tif`.  Where
    two images would get one name, see `output_names`.  Probabilities go to `folder/probability` as float32 TIFFs, with
    a page per class for each page of the image; outlines over the images to `folder/overlay`.  A regression has no
    mask and always writes the former.

    Progress and failures are told on stderr, a summary on stdout.
    """
    files, failures = find_files(inputs)
    names = output_names(files)
    has_mask = engine.info.output != "identity"
    segmented = 0
    start = time.perf_counter()
    progress = tqdm(files, desc="segmenting", unit="file", disable=None)
    for path in progress:
        progress.set_postfix_str(path.name)
        try:
            name = names[path]
            pages = [to_channels(page, engine.channels) for page in read_pages(path)]
            if has_mask:
                masks = [
                    engine.segment(page, tiling=tiling, threshold=threshold, max_value=max_value) for page in pages
                ]
                _write(folder, name, masks, files)
                if write_overlay:
                    _write(folder / "overlay", name, _overlays(pages, masks, engine.info.palette), files)
            if write_probability or not has_mask:
                values = [engine.probability(page, tiling=tiling, max_value=max_value) for page in pages]
                _write(folder / "probability", name, _page_per_class(values), files, ending=".tif")
            segmented += 1
        except (OSError, ValueError, MemoryError) as error:
            failures.append(_failure(path, error))
    seconds = time.perf_counter() - start
    if segmented:
        print(f"{segmented} of {segmented + len(failures)} files segmented in {seconds:.1f} s, results in {folder}")
    if failures:
        print(f"{len(failures)} failed:", *failures, sep="\n  ", file=sys.stderr)
    return len(failures)


def find_files(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files that `inputs` name, each once and in order, and a line for each input that names none.

    An input is a file, a folder (the images directly in it) or a pattern with `*`, `?`, `[...]` or `**`.
    """
    found: dict[Path, Path] = {}
    failures = []
    for text in inputs:
        path = Path(text)
        try:
            if path.is_dir():
                matches = list_images(path)
            elif path.exists() or not glob.has_magic(text):
                matches = [path]  # one that does not exist fails when it is read
            else:
                matches = [
                    match
                    for match in sorted(map(Path, glob.glob(text, recursive=True)))
                    if match.suffix.lower() in SUFFIXES and match.is_file()
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


def _overlays(
    pages: list[Pixels], masks: list[NDArray[Any]], palette: Sequence[overlay.Colour]
) -> list[overlay.Picture]:
    # Of several classes the first is the background.
    colours = (palette if len(palette) == 1 else palette[1:]) or overlay.PALETTE
    pictures = []
    for page, mask in zip(pages, masks, strict=True):
        # A network without padding has a smaller mask, at the centre of its image.
        top, left = (page.shape[0] - mask.shape[0]) // 2, (page.shape[1] - mask.shape[1]) // 2
        shown = page[top : top + mask.shape[0], left : left + mask.shape[1]]
        pictures.append(overlay.draw_outlines(shown, mask, palette=colours))
    return pictures


def _failure(path: Path, error: Exception) -> str:
    text = in_one_line(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"
