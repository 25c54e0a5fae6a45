"""IoU and Dice against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from train.metrics import Calibration, Overlap, Thresholds


def test_pooled_and_per_image_by_hand() -> None:
    overlap = Overlap()
    # 2 common, 4 predicted, 3 true: union 5.
    overlap.add(np.array([[1, 1, 1, 1, 0]]), np.array([[0, 0, 255, 255, 255]]))
    # 1 common, 1 predicted, 1 true: union 1.
    overlap.add(np.array([[0, 7]]), np.array([[0, 1]]))
    assert overlap.per_image_iou == [2 / 5, 1.0]
    assert overlap.per_image_dice == [4 / 7, 1.0]
    assert overlap.figures() == {
        "images": 2,
        "iou": 3 / 6,
        "dice": 6 / 9,
        "iou_per_image": pytest.approx(0.7),
        "dice_per_image": pytest.approx((4 / 7 + 1) / 2),
    }


def test_empty_against_empty_is_perfect_and_against_anything_is_zero() -> None:
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    overlap = Overlap()
    overlap.add(empty, empty)
    assert overlap.figures()["iou"] == overlap.figures()["dice"] == 1
    overlap.add(empty, full)
    overlap.add(full, empty)
    assert overlap.per_image_iou == [1, 0, 0]
    assert overlap.per_image_dice == [1, 0, 0]
    assert overlap.figures()["iou"] == 0


def test_several_classes_are_averaged_over_those_that_occur() -> None:
    overlap = Overlap(classes=4)
    # Class 1: 1 common, union 2.  Class 2: 1 common, union 3.  Class 3 does not occur.
    overlap.add(np.array([[0, 1, 2, 2]]), np.array([[1, 1, 2, 0]]) + np.array([[0, 0, 0, 0]]))
    assert overlap.per_image_iou == [pytest.approx((1 / 2 + 1 / 2) / 2)]
    overlap.add(np.array([[0, 0, 2, 0]]), np.array([[0, 0, 0, 0]]))
    assert overlap.figures()["iou"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Overlap().add(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no image"):
        Overlap().figures()


def test_calibration_by_hand() -> None:
    counts = Calibration(bins=2)
    # Below one half: 0.1 and 0.3, one of them true.  Above: 0.8 and 1, both true.
    counts.add(np.array([[[0.1], [0.3]], [[0.8], [1.0]]], np.float32), np.array([[0, 255], [7, 1]]))
    claimed, true, pixels = counts.curve()
    assert claimed == pytest.approx([0.2, 0.9])
    assert true.tolist() == [0.5, 1]
    assert pixels.tolist() == [2, 2]
    assert counts.expected_error == pytest.approx((0.3 + 0.1) / 2)


def test_calibration_of_classes_is_of_the_likeliest() -> None:
    counts = Calibration(bins=10)
    counts.add(np.array([[[0.2, 0.75, 0.05], [0.6, 0.1, 0.3]]], np.float32), np.array([[1, 2]]))
    claimed, true, _ = counts.curve()
    assert claimed == pytest.approx([0.6, 0.75])
    assert true.tolist() == [0, 1]
    with pytest.raises(ValueError, match="height and width must agree"):
        counts.add(np.zeros((2, 2, 1), np.float32), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no image was added"):
        _ = Calibration().expected_error


def test_thresholds_by_hand() -> None:
    """Two images of four pixels: the truth is drawn tight in one and wide in the other."""
    counts = Thresholds()
    probability = np.array([[[0.92], [0.72], [0.42], [0.02]]], np.float32)
    counts.add(probability, np.array([[255, 0, 0, 0]]))
    counts.add(probability, np.array([[1, 1, 1, 0]]))
    pooled = dict(zip(counts.values.round(2).tolist(), counts.pooled(), strict=True))
    assert (pooled[0.05], pooled[0.4], pooled[0.9], pooled[0.95]) == (4 / 6, 4 / 6, 2 / 4, 0)
    assert (pooled[0.45], pooled[0.5], pooled[0.7]) == (3 / 5, 3 / 5, 3 / 5)
    best = counts.best_of_each_image()
    assert (best["images"], best["iou"], best["iou_per_image"]) == (2, 1, 1)
    with pytest.raises(ValueError, match="must have one class and fit"):
        counts.add(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2)))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_threshold_of_a_mask_scores_as_the_mask_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts, overlap = Thresholds(), Overlap()
    for _ in range(5):
        probability = random.random((9, 7, 1), np.float32)
        truth = random.integers(0, 2, (9, 7))
        counts.add(probability, truth)
        overlap.add(probability[:, :, 0] >= 0.5, truth)
    figures, best = overlap.figures(), counts.best_of_each_image()
    assert counts.pooled()[9] == figures["iou"]
    assert best["iou_per_image"] >= figures["iou_per_image"]
    assert best["iou"] <= 1
