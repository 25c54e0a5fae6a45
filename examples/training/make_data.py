"""Synthetic images for other tasks than telling objects from background.

    python make_data.py TASK FOLDER [COUNT]

    fringes   interference fringes as a camera sees them; the masks are the same fringes without noise
    phase     the same fringes; the masks are the phase that bends them, 0 to 2 pi as 0 to 65535
    classes   micrographs with filaments (class 1) and round cells (class 2)

COUNT images (default 120) go to FOLDER/train/images and masks, a tenth as many, of other seeds, to FOLDER/test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet_fast.images import write_image
from unet_fast.synthetic import micrograph

SIDE = 128  # pixels
PERIOD = 8.0  # of the fringes, pixels
PHOTONS = 40.0  # per pixel at full brightness


def hologram(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fringes (SIDE, SIDE) in [0, 1] along x, and the phase (SIDE, SIDE) of 0 to 2 pi of the object that bends them."""
    y, x = np.mgrid[:SIDE, :SIDE]
    phase = np.full((SIDE, SIDE), 0.2)
    for _ in range(random.integers(2, 6)):
        centre_y, centre_x = random.uniform(0, SIDE, 2)
        width = random.uniform(8, 20)
        phase += random.uniform(0.5, 1.5) * np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * width**2))
    contrast = random.uniform(0.5, 0.9)
    return 0.5 + 0.5 * contrast * np.cos(2 * np.pi * x / PERIOD + phase), np.clip(phase, 0, 2 * np.pi)


def photographed(light: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera with shot noise makes of light in [0, 1]."""
    return np.clip(random.poisson(light * PHOTONS) / PHOTONS * 200, 0, 255).astype(np.uint8)


def fringes(seed: int) -> tuple[NDArray, NDArray]:
    """Noisy fringes, and the fringes."""
    random = np.random.default_rng(seed)
    light, _ = hologram(random)
    return photographed(light, random), np.rint(light * 200).astype(np.uint8)


def phase(seed: int) -> tuple[NDArray, NDArray]:
    """Noisy fringes, and the phase."""
    random = np.random.default_rng(seed)
    light, phase = hologram(random)
    return photographed(light, random), np.rint(phase / (2 * np.pi) * 65535).astype(np.uint16)


def classes(seed: int) -> tuple[NDArray, NDArray]:
    """A micrograph of filaments with round cells between and upon them, and the class of each pixel."""
    random = np.random.default_rng(seed)
    image, filaments = micrograph(seed, SIDE, SIDE, style="bright_field")
    labels = (filaments > 0).astype(np.uint8)
    light = image.astype(np.float64)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(random.integers(3, 8)):
        centre_y, centre_x = random.uniform(0, SIDE, 2)
        radius = random.uniform(5, 10)
        distance = np.hypot(y - centre_y, x - centre_x)
        light *= 1 - 0.4 / (1 + np.exp((distance - radius) / 0.7))
        labels[distance < radius] = 2
    return np.rint(light).astype(np.uint8), labels


def main() -> None:
    """Write the folders that the command line asks for."""
    tasks = {"fringes": fringes, "phase": phase, "classes": classes}
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in tasks:
        sys.exit(__doc__)
    make, folder = tasks[sys.argv[1]], Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) == 4 else 120
    for split, seeds in (("train", range(count)), ("test", range(100_000, 100_000 + max(count // 10, 1)))):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            image, truth = make(seed)
            write_image(folder / split / "images" / f"{seed:06}.png", image)
            write_image(folder / split / "masks" / f"{seed:06}.png", truth)


if __name__ == "__main__":
    main()
