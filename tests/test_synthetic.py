"""The generator of synthetic micrographs: repeatable, of any size, and with masks that fit the images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from unet_fast.synthetic import STYLES, micrograph


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    image, mask = micrograph(11)
    again, again_mask = micrograph(11)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, again_mask)
    other, other_mask = micrograph(12)
    assert not np.array_equal(image, other)
    assert not np.array_equal(mask, other_mask)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 300), (256, 256), (301, 129)])
def test_any_size(height: int, width: int, channels: int) -> None:
    image, mask = micrograph(3, height, width, channels=channels)
    assert image.shape == ((height, width) if channels == 1 else (height, width, 3))
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("style", STYLES)
def test_filaments_stand_out_as_the_style_says(style: str) -> None:
    """In transmitted light the masked pixels are darker than the rest, in fluorescence brighter (in nearly all)."""
    sign = 1 if style == "fluorescence" else -1
    contrasts, shares = [], []
    for seed in range(30):
        image, mask = micrograph(seed, style=style)  # type: ignore[arg-type]
        inside = mask > 0
        shares.append(inside.mean())
        if inside.any():
            contrasts.append(sign * (image[inside].mean() - image[~inside].mean()))
    assert np.mean(np.array(contrasts) > 3) > 0.9
    assert 0.02 < np.mean(shares) < 0.35


def test_larger_images_hold_more_filaments_not_larger_ones() -> None:
    small = np.mean([(micrograph(seed)[1] > 0).mean() for seed in range(40)])
    large = np.mean([(micrograph(seed, 512, 512)[1] > 0).mean() for seed in range(10)])
    assert 0.4 < large / small < 2.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1, "height": 0}, "height"),
        ({"seed": 1, "width": True}, "width"),
        ({"seed": 1, "channels": 2}, "channels"),
        ({"seed": 1, "style": "darkfield"}, "style"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        micrograph(**arguments)


def test_it_needs_no_torch() -> None:
    """The demo runs where PyTorch is not installed."""
    code = "import sys; sys.modules['torch'] = None; from unet_fast.synthetic import micrograph; micrograph(1, 32, 32)"
    subprocess.run([sys.executable, "-c", code], check=True)
