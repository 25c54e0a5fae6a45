"""How much each pixel counts, and what bends it: against the formulas, worked out pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from train.augment import bend
from train.batches import Batches
from train.data import Sample
from train.fit import fit
from train.loss import loss
from train.processes import Processes
from train.recipe import Recipe
from train.weights import pixel_weights, two_nearest
from unet_fast.spec import UNetSpec


def blobs(seed: int, shape: tuple[int, int] = (37, 50), classes: int = 2) -> np.ndarray:
    """Class numbers of a few objects, some touching."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    target = (smooth > np.quantile(smooth, 0.7)).astype(np.uint8)
    target[:, shape[1] // 2 :] *= classes - 1
    return target


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_boundary_weights_are_those_of_the_paper(seed: int, classes: int) -> None:
    """Equation 2, from the distance of every pixel to every pixel of every object."""
    target = blobs(seed, classes=classes)
    places = np.stack(np.indices(target.shape), axis=-1)
    distances = []
    for label in range(1, classes):
        objects, count = ndimage.label(target == label)
        for number in range(1, count + 1):
            pixels = np.argwhere(objects == number)
            distances.append(np.sqrt(((places[:, :, None] - pixels) ** 2).sum(-1).min(-1)))
    assert len(distances) > 3
    first, second, *_ = np.sort(distances, axis=0)
    nearest, next_nearest = two_nearest(target, 100)
    np.testing.assert_allclose(nearest, first)
    np.testing.assert_allclose(next_nearest, second)

    class_weights = tuple(range(2, 2 + classes))
    expected = np.array(class_weights)[target] + (target == 0) * 10 * np.exp(-((first + second) ** 2) / (2 * 3.0**2))
    weights = pixel_weights(target, class_weights, 10, 3)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, atol=10 * 0.0004)  # what lies beyond REACH is taken as 0


def test_one_object_or_none_has_no_gaps() -> None:
    target = np.zeros((20, 20), np.uint8)
    assert (pixel_weights(target, (), 10) == 1).all()
    target[3:9, 4:8] = 1
    assert (pixel_weights(target, (), 10) == 1).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_weighted_cross_entropy_by_hand(classes: int) -> None:
    """Weights of 1 change nothing; a pixel of weight 3 counts three times in the entropy and once in Dice."""
    spec = UNetSpec(classes=classes)
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(2, classes, 4, 6, generator=random, dtype=torch.float64)
    target = torch.randint(0, max(classes, 2), (2, 4, 6), generator=random).to(torch.uint8)
    plain = loss(logits, target, spec)
    assert loss(logits, target, spec, torch.ones(2, 4, 6)).item() == pytest.approx(plain.item())
    weights = torch.ones(2, 4, 6)
    weights[1, 2, 5] = 3
    if classes == 1:
        probability = logits.sigmoid()[1, 0, 2, 5]
        right = probability if target[1, 2, 5] else 1 - probability
    else:
        right = logits.softmax(1)[1, int(target[1, 2, 5]), 2, 5]
    more = -2 * torch.log(right) / target.numel()
    assert loss(logits, target, spec, weights).item() == pytest.approx((plain + more).item())


@pytest.mark.parametrize("seed", [5, 6])
def test_bending_moves_pixels_and_truth_alike(seed: int) -> None:
    target = blobs(seed, (96, 96))
    image = np.stack([target, 1 - target], axis=2).astype(np.float32)
    pixels, moved = bend(image, target, np.random.default_rng(seed))
    assert pixels.dtype == np.float32
    assert moved.dtype == np.uint8
    assert set(np.unique(moved)) <= {0, 1}
    np.testing.assert_allclose(pixels.sum(axis=2), 1, atol=1e-5)
    assert np.mean(moved != target) > 0.02
    # The nearest pixel is at least a quarter of what is interpolated.
    sure = np.abs(pixels[:, :, 0] - 0.5) > 0.2501
    assert sure.mean() > 0.5
    assert np.array_equal(pixels[sure][:, 0] > 0.5, moved[sure] == 1)
    _, as_image = bend(image, image, np.random.default_rng(seed))
    assert np.array_equal(as_image, pixels)


def test_a_batch_carries_weights_and_bent_images() -> None:
    spec = UNetSpec(base_width=8, depth=2)
    target = blobs(7, (32, 32))
    sample = Sample("a", "a", (target * 200)[:, :, None], target)
    recipe = Recipe(steps=1, batch=3, augment="none", elastic=1.0, class_weights=(1, 4), boundary_weight=10)
    batch = Batches([sample], spec, recipe, 0, Processes()).make(0)
    assert batch.weights is not None
    assert batch.weights.shape == batch.target.shape == (3, 32, 32)
    assert not torch.equal(batch.target[0], batch.target[1])
    assert (batch.weights[batch.target == 1] == 4).all()
    assert 1 < batch.weights[batch.target == 0].max() <= 11
    plain = Batches([sample], spec, Recipe(steps=1, batch=1, augment="none"), 0, Processes()).make(0)
    assert plain.weights is None
    assert torch.equal(plain.target[0], torch.from_numpy(target))


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({"classes": 3}, {"class_weights": (1, 2)}, r"must be 3 numbers, background first, got \(1, 2\)"),
        ({}, {"class_weights": (1, 2, 3)}, "must be 2 numbers"),
        ({"output": "identity"}, {"boundary_weight": 10}, "a regression has none"),
    ],
)
def test_weights_that_do_not_go_with_the_network_are_refused(
    tmp_path: Path, fields: dict, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(UNetSpec(**fields), [], [], tmp_path / "a.safetensors", Recipe(steps=1, **settings))


@pytest.mark.parametrize(
    "settings",
    [{"class_weights": (1, -1)}, {"boundary_weight": -1}, {"boundary_width": 0}, {"elastic": 1.5}, {"patience": -1}],
)
def test_settings_out_of_range_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        Recipe(steps=1, **settings)
