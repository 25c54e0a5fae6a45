"""Random changes that leave the truth true: what a microscope, a lamp and a camera vary from day to day.

Geometry is changed gently and intensity strongly, since the exposure of two instruments differs more than the shape of
what they look at.  All arrays are float32; the same generator state gives the same result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def augment(pixels: Floats, target: NDArray[np.generic], random: np.random.Generator) -> tuple[Floats, NDArray]:
    """A changed copy of `pixels` (H, W, C) in [0, 1], H equal to W, with `target` (H, W[, classes]) moved alike."""
    pixels, target = _turn(pixels, target, random)
    if random.random() < 0.5:
        pixels, target = _zoom(pixels, target, random)
    return _intensity(pixels, random), np.ascontiguousarray(target)


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
    nearest = np.ix_(mirror(np.rint(rows).astype(np.int64), side), mirror(np.rint(columns).astype(np.int64), side))
    return pixels, target[nearest]


def _interpolate(values: Floats, positions: NDArray[np.float64], axis: int) -> Floats:
    """Linear interpolation of `values` at `positions` along `axis`, mirrored at the edges."""
    low = np.floor(positions).astype(np.int64)
    weight = (positions - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    size = values.shape[axis]
    before, after = values.take(mirror(low, size), axis), values.take(mirror(low + 1, size), axis)
    return before + (after - before) * weight


def mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Indices brought into 0..size-1 by mirroring at the first and last pixel, which are not repeated."""
    period = max(2 * (size - 1), 1)
    index = np.abs(index) % period
    return np.where(index >= size, period - index, index)


def _intensity(pixels: Floats, random: np.random.Generator) -> Floats:
    pixels = pixels.astype(np.float32, copy=True)
    if random.random() < 0.2:
        pixels = _blur(pixels, random.uniform(0.4, 1.2))
    if random.random() < 0.5:
        pixels = np.maximum(pixels, 0) ** np.float32(np.exp(random.uniform(-0.5, 0.5)))
    if random.random() < 0.3:
        pixels *= _lamp(pixels.shape[0], random)
    if random.random() < 0.8:  # contrast about the mean, then gain, then offset
        mean = pixels.mean()
        contrast, gain = np.exp(random.uniform(-0.4, 0.4)), np.exp(random.uniform(-0.7, 0.5))
        pixels = ((pixels - mean) * contrast + mean) * gain + random.uniform(-0.05, 0.05)
    if random.random() < 0.3:
        # The grain of a dim image is small too: in proportion to the image's own contrast, not to full scale.
        level = random.uniform(0.0, 0.25) * pixels.std()
        pixels = pixels + np.float32(level) * random.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 1, dtype=np.float32)


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
            tap * pixels.take(mirror(positions + offset, pixels.shape[axis]), axis)
            for tap, offset in zip(taps, range(-radius, radius + 1), strict=True)
        )
        pixels = sum(shifted, start=np.zeros_like(pixels))
    return pixels
