"""Random changes that leave the truth true: what a microscope, a lamp and a camera vary from day to day.

Geometry is changed gently and intensity strongly, since the exposure of two instruments differs more than the shape of
what they look at.  Nothing is clipped: the skirts of dim objects lie near zero and belong to them.  All arrays are
float32; the same generator state gives the same result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_fast.images import mirrored

Floats = NDArray[np.float32]


def augment(
    pixels: Floats,
    target: NDArray[np.generic],
    random: np.random.Generator,
    *,
    zoom: bool = True,
    intensity: bool = True,
    stains: bool = False,
) -> tuple[Floats, NDArray]:
    """A changed copy of `pixels` (H, W, C) in [0, 1], H equal to W, with `target` (H, W[, classes]) moved alike.

    The changed pixels may lie somewhat outside [0, 1].  Without `intensity` only the geometry changes, for targets that
    are images themselves; without `zoom` too, pixels keep their values.  With `stains` half of the images of several
    channels have the density of each channel changed.
    """
    pixels, target = _turn(pixels, target, random)
    if zoom and random.random() < 0.5:
        pixels, target = _zoom(pixels, target, random)
    if intensity:
        pixels = _intensity(pixels, random, stains=stains)
    return pixels, np.ascontiguousarray(target)


def bend(pixels: Floats, target: NDArray[np.generic], random: np.random.Generator) -> tuple[Floats, NDArray]:
    """Elastic deformation: displacements drawn on a grid of 4 x 4 points, a cubic between them; edges are mirrored.

    Each component has a standard deviation of 2 % of the side, about 5 pixels of 256: little enough not to fold.
    """
    side = pixels.shape[0]
    place = np.linspace(0, 3, side)
    grid = np.meshgrid(place, place, indexing="ij")
    coarse = random.normal(0, 0.02 * side, (2, 4, 4))
    rows, columns = (ndimage.map_coordinates(component, grid, order=3, mode="nearest") for component in coarse)
    where = np.indices((side, side)) + np.stack([rows, columns])

    def planes(values: NDArray) -> Floats:
        moved = [ndimage.map_coordinates(plane, where, order=1, mode="mirror") for plane in np.moveaxis(values, 2, 0)]
        return np.stack(moved, axis=2).astype(np.float32)

    if target.ndim == 3:
        return planes(pixels), planes(target)
    return planes(pixels), ndimage.map_coordinates(target, where, order=0, mode="mirror")


def window(
    pixels: Floats, target: NDArray[np.generic], side: int, random: np.random.Generator, *, follow: bool = True
) -> tuple[Floats, NDArray]:
    """`side` x `side` of `pixels` (H, W, C) and `target` (H, W[, classes]); what is no larger stays as it is.

    Half of the windows lie anywhere; with `follow` the other half hold a pixel, drawn at random, of a class other than
    0 if the image has one: a step then sees several times the objects in the same arithmetic.
    """
    height, width = target.shape[:2]
    tall, wide = min(side, height), min(side, width)
    if (tall, wide) == (height, width):
        return pixels, target
    top, left = int(random.integers(height - tall + 1)), int(random.integers(width - wide + 1))
    objects = np.flatnonzero(target) if follow and random.random() < 0.5 else np.empty(0, np.int64)
    if objects.size:
        y, x = divmod(int(objects[random.integers(objects.size)]), width)
        top = int(np.clip(y - random.integers(tall), 0, height - tall))
        left = int(np.clip(x - random.integers(wide), 0, width - wide))
    place = np.s_[top : top + tall, left : left + wide]
    return pixels[place], target[place]


def _turn(pixels: Floats, target: NDArray, random: np.random.Generator) -> tuple[Floats, NDArray]:
    """One of the eight symmetries of the square."""
    quarters, flip = int(random.integers(4)), bool(random.integers(2))
    pixels, target = np.rot90(pixels, quarters), np.rot90(target, quarters)
    return (pixels[:, ::-1], target[:, ::-1]) if flip else (pixels, target)


def _zoom(pixels: Floats, target: NDArray, random: np.random.Generator) -> tuple[Floats, NDArray]:
    """Stretch by 0.75 to 1.33 (each axis up to 10 % apart) about a random point; what is missing is mirrored."""
    side = pixels.shape[0]
    zoom = np.exp(random.uniform(np.log(0.75), np.log(1.33)))
    axes = []
    for _ in range(2):
        step = 1 / (zoom * np.exp(random.uniform(-0.05, 0.05)))  # source pixels per result pixel
        start = random.uniform(min(0.0, side * (1 - step)), max(0.0, side * (1 - step)))
        axes.append(start + (np.arange(side) + 0.5) * step - 0.5)
    rows, columns = axes
    pixels = _interpolate(_interpolate(pixels, rows, 0), columns, 1)
    if target.ndim == 3:
        return pixels, _interpolate(_interpolate(target.astype(np.float32), rows, 0), columns, 1)
    nearest = np.ix_(mirrored(np.rint(rows).astype(np.int64), side), mirrored(np.rint(columns).astype(np.int64), side))
    return pixels, target[nearest]


def _interpolate(values: Floats, positions: NDArray[np.float64], axis: int) -> Floats:
    """Linear interpolation of `values` at `positions` along `axis`, mirrored at the edges."""
    low = np.floor(positions).astype(np.int64)
    weight = (positions - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    size = values.shape[axis]
    before, after = values.take(mirrored(low, size), axis), values.take(mirrored(low + 1, size), axis)
    return before + (after - before) * weight


def _intensity(pixels: Floats, random: np.random.Generator, *, stains: bool) -> Floats:
    pixels = pixels.astype(np.float32, copy=True)
    if stains and pixels.shape[2] > 1 and random.random() < 0.5:
        pixels = _colour(pixels, random)
    if random.random() < 0.15:
        pixels = _blur(pixels, random.uniform(0.4, 1.0))
    if random.random() < 0.5:
        pixels = np.maximum(pixels, 0) ** np.float32(np.exp(random.uniform(-0.35, 0.35)))
    if random.random() < 0.2:
        pixels *= _lamp(pixels.shape[0], random)
    # Offset and grain go with the image's own contrast: what is little at full scale would drown a dim image.
    contrast = float(pixels.std())
    gain, offset = np.exp(random.uniform(-0.7, 0.5)), random.uniform(-0.3, 0.3) * contrast
    pixels = pixels * np.float32(gain) + np.float32(offset)
    if random.random() < 0.3:
        grain = np.float32(random.uniform(0.0, 0.15) * gain * contrast)
        pixels = pixels + grain * random.standard_normal(pixels.shape, dtype=np.float32)
    return pixels


def _colour(pixels: Floats, random: np.random.Generator) -> Floats:
    """Other stains, filters and exposures: the density of each channel, -log of its value, is scaled and shifted.

    By 0.74 to 1.35 and by up to 0.15, anew for each channel.  Tellez et al. (Medical Image Analysis 58, 2019) do so
    along the axes of known dyes; along the channels nothing need be known, and fluorescence is varied likewise.
    """
    channels = pixels.shape[2]
    exponent, gain = np.exp(random.uniform(-0.3, 0.3, channels)), np.exp(random.uniform(-0.15, 0.15, channels))
    return np.maximum(pixels, 0) ** exponent.astype(np.float32) * gain.astype(np.float32)


def _lamp(side: int, random: np.random.Generator) -> Floats:
    """Uneven light: a linear slope of up to 30 % across the image, (side, side, 1)."""
    slope_y, slope_x = random.uniform(-0.15, 0.15, size=2)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return (1 + slope_y * axis[:, None] + slope_x * axis[None, :]).astype(np.float32)[:, :, None]


def _blur(pixels: Floats, sigma: float) -> Floats:
    """Gaussian blur of `sigma` pixels, mirrored at the edges."""
    radius = int(np.ceil(2.5 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        positions = np.arange(pixels.shape[axis])
        shifted = (
            tap * pixels.take(mirrored(positions + offset, pixels.shape[axis]), axis)
            for tap, offset in zip(taps, range(-radius, radius + 1), strict=True)
        )
        pixels = sum(shifted, start=np.zeros_like(pixels))
    return pixels
