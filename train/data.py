"""From folders of micrographs and masks to samples of one size, and the checks that a person wants before training.

The steps, each its own function, in the order in which `load_folder` takes them:

    pair_files     an image and the mask of the same name
    load_sample    pixels and labels of each page, channels expanded or joined
    resize         optional: everything to one size
    cut_patches    tiles of one size from larger images, masks alike
    draw           optional: few of the files
    split          every tenth source file is held out
    check          shapes, values, empty masks

Pixels stay in the type of the file (uint8, uint16, float32) until a batch is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_fast.images import ImageError, list_images, read_pages, to_channels, to_unit
from unet_fast.spec import UNetSpec

LOSSY_SUFFIXES = (".jpg", ".jpeg")


class DataError(ValueError):
    """Image and mask folders that cannot be trained on; the message names the files."""


@dataclass(frozen=True)
class Sample:
    """One image with its truth.

    name     what to call it in reports: the file's stem, with page and patch where there are several
    source   the file it came from; patches of one file never straddle the split
    pixels   (H, W, in_channels) uint8, uint16 or float32 in [0, 1]
    target   (H, W) uint8 class numbers, or for regression (H, W, classes) float32 in [0, 1]
    """

    name: str
    source: str
    pixels: NDArray[Any]
    target: NDArray[Any]


def pair_files(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """(image, mask) paths with the same stem, sorted by name; the endings may differ.

    `DataError` where one is without its partner or two files share a stem.
    """
    by_stem: list[dict[str, Path]] = []
    for folder in (images, masks):
        stems: dict[str, Path] = {}
        for path in list_images(folder):
            if path.stem in stems:
                raise DataError(f"{folder} holds both {stems[path.stem].name} and {path.name}; names must differ")
            stems[path.stem] = path
        by_stem.append(stems)
    image_paths, mask_paths = by_stem
    lonely = []
    for what, missing in (
        (f"{images} has no mask in {masks} for", sorted(image_paths.keys() - mask_paths.keys())),
        (f"{masks} has no image in {images} for", sorted(mask_paths.keys() - image_paths.keys())),
    ):
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lonely.append(f"{what} {', '.join(missing[:5])}{more}")
    if lonely:
        raise DataError("; ".join(lonely) + ". A mask must have the name of its image (the ending may differ)")
    return [(image_paths[stem], mask_paths[stem]) for stem in sorted(image_paths)]


def load_sample(image_path: Path, mask_path: Path, spec: UNetSpec) -> list[Sample]:
    """The pages of an image with those of its mask.  `ImageError` or `DataError` names the file at fault."""
    images = read_pages(image_path)
    masks = read_pages(mask_path, palette_indices=spec.output == "softmax")
    if len(images) != len(masks):
        raise DataError(f"{image_path} has {len(images)} pages, its mask {mask_path} has {len(masks)}")
    samples = []
    for page, (pixels, mask) in enumerate(zip(images, masks, strict=True)):
        if pixels.shape[:2] != mask.shape[:2]:
            raise DataError(f"{image_path} is {_size(pixels)}, its mask {mask_path} is {_size(mask)} (height x width)")
        try:
            pixels = to_channels(pixels, spec.in_channels)
            to_unit(pixels)  # only for its check of float pixels
        except ImageError as error:
            raise ImageError(f"{image_path}: {error}") from None
        name = image_path.stem if len(images) == 1 else f"{image_path.stem}#{page}"
        samples.append(Sample(name, str(image_path), pixels, _target(mask, mask_path, spec)))
    return samples


def _target(mask: NDArray[Any], path: Path, spec: UNetSpec) -> NDArray[Any]:
    """A mask's pixels as `Sample.target`.

    One class: what is not zero (in colour: not black) is foreground, so 0/1, 0/255 and instance numbers all do; in a
    JPEG, whose compression blurs the two values, what is at least 128.  Several classes: grey values or palette
    indices are class numbers.
    """
    try:
        if spec.output == "identity":
            return to_unit(to_channels(mask, spec.classes))
        if mask.ndim == 3:
            colours = mask[:, :, :3] if mask.shape[2] != 2 else mask[:, :, :1]
            if spec.classes > 1 and (colours != colours[:, :, :1]).any():
                raise ImageError("a mask of several classes must be grey or have a palette, this one is RGB")
            mask = colours.max(axis=2)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if spec.classes == 1:
        threshold = 128 if path.suffix.lower() in LOSSY_SUFFIXES else 1
        return np.asarray(mask >= threshold if mask.dtype.kind == "u" else mask > 0, dtype=np.uint8)
    if mask.dtype.kind != "u" or mask.max() >= spec.classes:
        raise DataError(f"{path}: class numbers must be whole and below {spec.classes}, the largest is {mask.max()}")
    return mask.astype(np.uint8)


def resize(sample: Sample, height: int, width: int) -> Sample:
    """The sample at another size: pixels bilinear (area-averaged when shrinking), class numbers nearest."""
    if sample.pixels.shape[:2] == (height, width):
        return sample
    target = sample.target
    target = (
        _resize_planes(target, height, width)
        if target.ndim == 3
        else np.array(Image.fromarray(target).resize((width, height), Image.Resampling.NEAREST))
    )
    return replace(sample, pixels=_resize_planes(sample.pixels, height, width), target=target)


def _resize_planes(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    planes = []
    for channel in range(pixels.shape[2]):
        plane = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        planes.append(np.array(plane.resize((width, height), Image.Resampling.BILINEAR)))
    resized = np.stack(planes, axis=2)
    return (np.rint(resized) if pixels.dtype.kind == "u" else resized.clip(0, 1)).astype(pixels.dtype)


def cut_patches(sample: Sample, size: int) -> list[Sample]:
    """Tiles of `size` x `size` that cover the whole sample.

    The tiles stand side by side; where the size does not divide the image, the last ones are moved back to the edge
    and overlap their neighbours, so that every pixel is used.  `DataError` for images smaller than a tile.
    """
    height, width = sample.pixels.shape[:2]
    if height < size or width < size:
        raise DataError(
            f"{sample.source} is {height}x{width}, smaller than the {size}x{size} tiles; "
            f"use --resize, or a smaller --tile"
        )
    if (height, width) == (size, size):
        return [sample]
    patches = []
    for top in _starts(height, size):
        for left in _starts(width, size):
            window = np.s_[top : top + size, left : left + size]
            name = f"{sample.name}@{top},{left}"
            patches.append(replace(sample, name=name, pixels=sample.pixels[window], target=sample.target[window]))
    return patches


def _starts(length: int, size: int) -> list[int]:
    return sorted({*range(0, length - size + 1, size), length - size})


def load_folder(
    images: str | Path, masks: str | Path, spec: UNetSpec, *, tile: int | None = None, resize_to: int | None = None
) -> list[Sample]:
    """All samples of a pair of folders.

    resize_to   height and width that every image is brought to first; None leaves sizes as they are
    tile        side of the patches that are cut then; None keeps images whole, whatever their sizes
    """
    samples = []
    for image_path, mask_path in pair_files(images, masks):
        for sample in load_sample(image_path, mask_path, spec):
            if resize_to is not None:
                sample = resize(sample, resize_to, resize_to)
            samples.extend([sample] if tile is None else cut_patches(sample, tile))
    return samples


def draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The samples of `count` source files, drawn by `seed`; a larger count of the same seed holds a smaller one's."""
    sources = sorted({sample.source for sample in samples})
    if not 2 <= count <= len(sources):
        raise DataError(f"{count} image files were asked for; there are {len(sources)}, and at least 2 are needed")
    drawn = set(np.random.default_rng(seed).permutation(sources)[:count].tolist())
    return [sample for sample in samples if sample.source in drawn]


def split(samples: Sequence[Sample], fraction: float = 0.1) -> tuple[list[Sample], list[Sample]]:
    """(training, held out): with `fraction` 0.1 every tenth source file, counted in order of name, is held out.

    The same files give the same split on every machine.  At least one file is held out, else the share of `fraction`,
    rounded down; `DataError` for fewer than two files, and for a fraction outside (0, 0.5].
    """
    if not 0 < fraction <= 0.5:
        raise DataError(f"the held-out fraction must be above 0 and at most 0.5, got {fraction}")
    sources = sorted({sample.source for sample in samples})
    if len(sources) < 2:
        raise DataError(
            f"{len(sources)} image file given; at least two are needed, one of them to hold out; save the pages of a "
            "stack, or parts of the image, as files of their own"
        )
    share = Fraction(fraction).limit_denominator(1000)  # 0.1 as it is meant
    held_out = {source for index, source in enumerate(sources) if (index + 1) * share // 1 > index * share // 1}
    held_out = held_out or {sources[-1]}
    return (
        [sample for sample in samples if sample.source not in held_out],
        [sample for sample in samples if sample.source in held_out],
    )


def statistics(samples: Sequence[Sample]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, population standard deviation) of all pixels in [0, 1], a number for each channel, to six digits.

    `DataError` where all pixels of a channel are alike.
    """
    pixels = np.concatenate([to_unit(sample.pixels).reshape(-1, sample.pixels.shape[2]) for sample in samples])
    mean, deviation = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
    if not deviation.all():
        raise DataError(f"all pixels of channel {int(np.argmin(deviation))} are alike, so it cannot be normalised")
    return tuple(float(f"{m:.6g}") for m in mean), tuple(float(f"{s:.6g}") for s in deviation)


def check(samples: Sequence[Sample], spec: UNetSpec) -> str:
    """The sanity check in words: counts, sizes, types, ranges of values, foreground, and what looks wrong."""
    sizes = sorted({f"{_size(sample.pixels)}" for sample in samples})
    types = sorted({str(sample.pixels.dtype) for sample in samples})
    lines = [
        f"{len(samples)} samples from {len({sample.source for sample in samples})} files, {', '.join(types)}, "
        f"{len(sizes)} size{'s' if len(sizes) > 1 else ''} ({', '.join(sizes[:4])}{', ...' if len(sizes) > 4 else ''})",
    ]
    units = [to_unit(sample.pixels) for sample in samples]
    lines.append(
        f"pixels {min(unit.min() for unit in units):.3f} to {max(unit.max() for unit in units):.3f} of full scale, "
        f"mean {np.mean([unit.mean() for unit in units]):.3f}"
    )
    flat = [sample.name for sample, unit in zip(samples, units, strict=True) if unit.min() == unit.max()]
    if spec.output != "identity":
        shares = np.array([np.mean(sample.target > 0) for sample in samples])
        labels = sorted(set().union(*(np.unique(sample.target).tolist() for sample in samples)))
        lines.append(f"mask values {labels}, foreground {shares.mean():.4f} of the pixels on average")
        lines += _warning("empty mask", [s.name for s, share in zip(samples, shares, strict=True) if share == 0])
        full = [s.name for s, share in zip(samples, shares, strict=True) if share == 1]
        lines += _warning("mask without background", full)
    lines += _warning("image of one single value", flat)
    return "\n".join(lines)


def _warning(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"warning: {what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"]


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
