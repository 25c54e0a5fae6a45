"""Synthetic micrographs of spirulina-like filaments with exact masks, so that demo and tests need no data.

    image, mask = micrograph(seed=7)                     # (256, 256) uint8, and uint8 of 0 and 255
    image, mask = micrograph(7, 700, 500, channels=3)    # RGB, any size

A filament is a thin tube wound around a gently bent axis; its mask is every pixel whose centre lies within the
projected tube, whatever the optics made of it afterwards.  The optics: absorption along the tube and a dark rim,
defocus of each filament by its own depth, uneven light, out-of-focus dirt, shot noise and grain.  NumPy only; the same
seed gives the same image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Style = Literal["bright_field", "phase_contrast", "fluorescence"]
STYLES: tuple[Style, ...] = ("bright_field", "phase_contrast", "fluorescence")
_STYLE_SHARES = (0.7, 0.15, 0.15)

#: Image area in pixels for which one draw of "how many" is meant; larger images get proportionally more.
_REFERENCE_AREA = 256 * 256

#: How strongly the pigments absorb red, green and blue: what is left of white light is green.
_PIGMENT = np.array([1.15, 0.7, 1.05])

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Filament:
    """A projected tube: points half a pixel apart along its middle, all arrays of one length.

    y, x       position in pixels, pixel centres at whole numbers
    depth      -1 (far side of the winding) to 1 (near side)
    distance   pixels along the tube
    radius     of the tube in pixels, tapering at the ends
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    depth: NDArray[np.float64]
    distance: NDArray[np.float64]
    radius: NDArray[np.float64]


def micrograph(
    seed: int, height: int = 256, width: int = 256, *, channels: int = 1, style: Style | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One micrograph and its mask.

    seed      a non-negative whole number; the same seed and size give the same pixels
    height, width    of the image in pixels, at least 1
    channels  1 for grey (H, W), 3 for RGB (H, W, 3)
    style     how the light was made; drawn from the seed if not given

    Returns (image uint8, mask (H, W) uint8 with 0 background and 255 filament).  `ValueError` for other arguments.
    """
    for name, value, low in (("seed", seed, 0), ("height", height, 1), ("width", width, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    if style is not None and style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    random = np.random.default_rng(seed)
    drawn = STYLES[int(random.choice(len(STYLES), p=_STYLE_SHARES))]
    style = style or drawn

    mask = np.zeros((height, width), dtype=bool)
    absorbed = np.zeros((height, width), dtype=np.float32)  # optical density of everything in the light's way
    halo = np.zeros((height, width), dtype=np.float32)  # light bent out of the edges, for phase contrast
    share = height * width / _REFERENCE_AREA
    culture = _culture(random)
    density = random.uniform(0.5, 1.3)
    # A small image must not often be empty, a large one has in proportion.
    for _ in range(max(1, random.poisson(random.uniform(2, 7) * share))):
        filament = _filament(random, culture, height, width)
        defocus = abs(random.normal(0, 0.9)) + 0.4
        halo_width = 2.0 + 2 * defocus
        window = _window(filament, 3 * halo_width, height, width)
        silhouette, tube, rim = _render(filament, random, window)
        mask[window] |= silhouette
        absorbed[window] += density * random.uniform(0.7, 1.2) * _blur(tube + 0.5 * rim, defocus)
        if style == "phase_contrast":
            halo[window] += _blur(silhouette.astype(np.float32), halo_width) * ~silhouette
    dirt = _dirt(random, height, width, share)

    light = _light(random, height, width)
    if style == "bright_field":
        scene = _colours(light, absorbed, dirt, random.uniform(0.55, 0.85), channels)
    elif style == "phase_contrast":
        scene = _colours(light * (1 + 0.5 * halo), 1.2 * absorbed, dirt, random.uniform(0.4, 0.6), channels)
    else:
        glow = random.uniform(0.25, 0.9) * (1 - np.exp(-1.5 * absorbed)) + 0.1 * _blur(absorbed, 6.0)
        scene = (light * (glow + 0.3 * dirt) + random.uniform(0.01, 0.08))[:, :, None]
        # Chlorophyll glows red.
        scene = scene * np.array([1.0, 0.25, 0.15], dtype=np.float32) if channels == 3 else scene
    image = _camera(scene, random)
    return (image if channels == 3 else image[:, :, 0]), mask.astype(np.uint8) * np.uint8(255)


def _culture(random: np.random.Generator) -> dict[str, float]:
    """What the filaments of one image have in common, in pixels: they are of one strain, seen at one magnification."""
    radius = random.uniform(1.4, 4.2)
    coil = random.uniform(2.0, 4.5) * radius if random.random() < 0.85 else random.uniform(0.0, 1.0) * radius
    return {"radius": radius, "coil": coil, "pitch": random.uniform(2.4, 6.0) * max(coil, 2 * radius)}


def _filament(random: np.random.Generator, culture: dict[str, float], height: int, width: int) -> _Filament:
    """A tube wound around an axis that starts anywhere in the image and wanders."""
    step = 0.5
    length = min(random.lognormal(np.log(170), 0.6), 600.0)  # of the axis
    along = np.arange(0.0, max(length, 12.0), step)
    turning = random.normal(0, 0.004) + _wander(random, along.size, 160) * 0.012
    heading = random.uniform(0, 2 * np.pi) + np.cumsum(turning) * step
    axis_y, axis_x = np.cumsum(np.sin(heading)) * step, np.cumsum(np.cos(heading)) * step
    middle = random.integers(along.size)
    axis_y += random.uniform(0, height) - axis_y[middle]
    axis_x += random.uniform(0, width) - axis_x[middle]

    coil = culture["coil"] * random.uniform(0.8, 1.2) * (1 + 0.25 * _wander(random, along.size, 120))
    pitch = culture["pitch"] * random.uniform(0.8, 1.25) * np.exp(0.2 * _wander(random, along.size, 120))
    phase = random.uniform(0, 2 * np.pi) + np.cumsum(2 * np.pi / pitch) * step
    # The winding narrows towards the tips, as it does in the living thing.
    tips = np.minimum(1, np.minimum(along, along[-1] - along + step) / (0.7 * culture["pitch"] + 1))
    sideways = coil * np.sqrt(tips) * np.sin(phase)
    y, x = axis_y + sideways * np.cos(heading), axis_x - sideways * np.sin(heading)

    # The winding stretches the spacing of the points; space them evenly again.
    distance = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(y), np.diff(x)))])
    even = np.arange(0.0, distance[-1], step)
    y, x, depth = (np.interp(even, distance, values) for values in (y, x, np.cos(phase)))
    taper = np.minimum(1, np.minimum(even + 1, even[-1] - even + 1) / (2 * culture["radius"]))
    return _Filament(y, x, depth, even, culture["radius"] * random.uniform(0.85, 1.15) * np.sqrt(taper))


def _wander(random: np.random.Generator, count: int, knot_spacing: int) -> NDArray[np.float64]:
    """A smooth random curve of about unit size, `count` values, with a knot every `knot_spacing` values."""
    knots = random.normal(size=count // knot_spacing + 2)
    place = np.linspace(0, knots.size - 1.001, count)
    low = place.astype(np.int64)
    weight = (1 - np.cos(np.pi * (place - low))) / 2
    return knots[low] * (1 - weight) + knots[low + 1] * weight


def _window(filament: _Filament, margin: float, height: int, width: int) -> tuple[slice, slice]:
    """The part of the image that the filament and `margin` pixels around it lie in; at least one pixel."""
    around = filament.radius.max() + margin
    slices = []
    for place, size in ((filament.y, height), (filament.x, width)):
        low = min(max(int(place.min() - around), 0), size - 1)
        slices.append(slice(low, max(min(int(place.max() + around) + 2, size), low + 1)))
    return slices[0], slices[1]


def _render(
    filament: _Filament, random: np.random.Generator, window: tuple[slice, slice]
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """(silhouette, thickness of the tube in the light's way from 0 to 1, dark rim from 0 to 1) in the window."""
    y, x = filament.y[:, None, None] - window[0].start, filament.x[:, None, None] - window[1].start
    height, width = (part.stop - part.start for part in window)
    reach = int(np.ceil(filament.radius.max())) + 2
    offsets = np.arange(-reach, reach + 1)
    rows = np.rint(y).astype(np.int64) + offsets[None, :, None]
    columns = np.rint(x).astype(np.int64) + offsets[None, None, :]
    away = np.hypot(rows - y, columns - x)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)

    # For each pixel the nearest point of the tube: the smallest of keys that carry distance first, point second.
    count = filament.y.size
    keys = np.rint(away * 1024).astype(np.int64) * count + np.arange(count)[:, None, None]
    far = np.iinfo(np.int64).max
    nearest = np.full(height * width, far)
    np.minimum.at(nearest, (rows * width + columns)[inside], keys[inside])
    nearest = nearest.reshape(height, width)
    touched = nearest != far
    point = np.where(touched, nearest % count, 0)
    ratio = np.where(touched, nearest // count / 1024, 1e9) / filament.radius[point]

    tube = np.sqrt(np.clip(1 - ratio**2, 0, 1))
    cells = 1 - random.uniform(0, 0.25) * np.cos(2 * np.pi * filament.distance[point] / random.uniform(3.5, 7.0)) ** 8
    tube = tube * cells * (1 + 0.25 * filament.depth[point])
    rim = np.exp(-(((ratio - 0.95) / 0.3) ** 2)) * touched
    return ratio <= 1, tube.astype(np.float32), rim.astype(np.float32)


def _dirt(random: np.random.Generator, height: int, width: int, share: float) -> Floats:
    """Optical density of specks, bubbles and out-of-focus blobs, (H, W)."""
    dirt = np.zeros((height, width), dtype=np.float32)
    for _ in range(random.poisson(random.uniform(0, 14) * share)):
        y, x = random.uniform(0, height), random.uniform(0, width)
        size = float(np.exp(random.uniform(np.log(0.8), np.log(7.0))))
        soft = random.uniform(0.3, 1.0) if random.random() < 0.6 else random.uniform(2.0, 6.0)
        reach = int(np.ceil(size * 1.5 + 3 * soft))
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        rows, columns = np.ogrid[top : min(int(y) + reach, height), left : min(int(x) + reach, width)]
        # A slightly squashed disc, or the ring of a bubble.
        angle, squash = random.uniform(0, np.pi), random.uniform(0.6, 1.0)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        away = np.hypot(across / squash, along)
        if random.random() < 0.25:
            blob = np.exp(-(((away - size) / (0.4 + 0.4 * soft)) ** 2))
        else:
            blob = 1 / (1 + np.exp(np.clip((away - size) / (0.5 * soft), -30, 30)))
        dirt[top : top + blob.shape[0], left : left + blob.shape[1]] += random.uniform(0.1, 0.7) / (1 + soft / 3) * blob
    return dirt


def _light(random: np.random.Generator, height: int, width: int) -> Floats:
    """Uneven illumination of mean near 1: a slope, a vignette off the middle, and broad mottle, (H, W)."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    slope = random.normal(0, 0.08) * y + random.normal(0, 0.08) * x
    centre_y, centre_x = random.uniform(-0.5, 0.5, size=2)
    vignette = random.uniform(0, 0.18) * ((y - centre_y) ** 2 + (x - centre_x) ** 2)
    mottle = np.zeros((height, width))
    for _ in range(4):
        wave_y, wave_x, start = random.normal(0, 3), random.normal(0, 3), random.uniform(0, 2 * np.pi)
        mottle += random.normal(0, 0.008) * np.cos(wave_y * y + wave_x * x + start)
    return (1 + slope - vignette + mottle).clip(0.3).astype(np.float32)


def _colours(light: Floats, absorbed: Floats, dirt: Floats, exposure: float, channels: int) -> Floats:
    """Transmitted light in [0, about 1], (H, W, channels): coloured by the pigments, dimmed alike by dirt."""
    pigment = _PIGMENT if channels == 3 else _PIGMENT[1:2]
    density = absorbed[:, :, None] * pigment + dirt[:, :, None]
    white = np.array([1.0, 0.99, 0.94]) if channels == 3 else np.ones(1)
    return (exposure * light[:, :, None] * white * np.exp(-density)).astype(np.float32)


def _camera(scene: Floats, random: np.random.Generator) -> NDArray[np.uint8]:
    """Shot noise, grain and eight bits: (H, W, C) in [0, about 1] -> uint8."""
    full_well = np.exp(random.uniform(np.log(300), np.log(8000)))  # electrons at full scale
    shot = np.sqrt(np.maximum(scene, 0) / full_well) * random.standard_normal(scene.shape)
    grain = _blur(random.standard_normal(scene.shape[:2]).astype(np.float32), random.uniform(0.5, 1.2))
    grain *= random.uniform(0, 0.03) / max(float(grain.std()), 1e-6)
    noisy = scene * (1 + grain[:, :, None]) + shot + random.normal(0, 0.003, scene.shape)
    return np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)


def _blur(values: Floats, sigma: float) -> Floats:
    """Gaussian blur of (H, W) by `sigma` pixels, the edge pixels repeated outwards."""
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    result: NDArray[Any] = values
    for axis in (0, 1):
        length = result.shape[axis]
        padded = np.pad(result, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        windows = (padded[i : i + length] if axis == 0 else padded[:, i : i + length] for i in range(taps.size))
        result = sum((tap * window for tap, window in zip(taps, windows, strict=True)), np.zeros_like(result))
    return result
