"""How good masks are (intersection over union, Dice), and whether probabilities are what they say (calibration)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Overlap:
    """Running counts of predicted against true pixels.

    `add` each image's class maps (H, W); the properties give the scores so far.  Class 0 is background and is not
    scored.  With several classes the pooled score is the mean over the classes that occur, in truth or prediction, and
    so is the score of each image.  Where prediction and truth are both empty the score is 1.
    """

    classes: int = 2

    def __post_init__(self) -> None:
        self._intersections: list[NDArray[np.int64]] = []
        self._sums: list[NDArray[np.int64]] = []  # predicted plus true pixels

    def add(self, predicted: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count one image.  Both arrays (H, W), of class numbers or, with two classes, of zero and non-zero."""
        if predicted.shape != truth.shape:
            raise ValueError(f"prediction is {predicted.shape}, truth is {truth.shape}; they must be of one shape")
        if self.classes == 2:
            predicted, truth = predicted != 0, truth != 0
        labels = range(1, self.classes)
        hits = [np.count_nonzero((predicted == label) & (truth == label)) for label in labels]
        sums = [np.count_nonzero(predicted == label) + np.count_nonzero(truth == label) for label in labels]
        self._intersections.append(np.array(hits, dtype=np.int64))
        self._sums.append(np.array(sums, dtype=np.int64))

    @property
    def per_image_iou(self) -> list[float]:
        """IoU of each image in the order of `add`."""
        return [_iou(hits, sums) for hits, sums in zip(self._intersections, self._sums, strict=True)]

    @property
    def per_image_dice(self) -> list[float]:
        """Dice of each image in the order of `add`."""
        return [_dice(hits, sums) for hits, sums in zip(self._intersections, self._sums, strict=True)]

    def figures(self) -> dict[str, float | int]:
        """{"images", "iou", "dice", "iou_per_image", "dice_per_image"}; the first two scores are pooled."""
        if not self._sums:
            raise ValueError("no image was added, so there is nothing to score")
        hits, sums = np.sum(self._intersections, axis=0), np.sum(self._sums, axis=0)
        return {
            "images": len(self._sums),
            "iou": _iou(hits, sums),
            "dice": _dice(hits, sums),
            "iou_per_image": float(np.mean(self.per_image_iou)),
            "dice_per_image": float(np.mean(self.per_image_dice)),
        }


def _iou(hits: NDArray[np.int64], sums: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of intersection / union, the union being sums - hits."""
    occurs = sums > 0
    return float(np.mean(hits[occurs] / (sums - hits)[occurs])) if occurs.any() else 1.0


def _dice(hits: NDArray[np.int64], sums: NDArray[np.int64]) -> float:
    occurs = sums > 0
    return float(np.mean(2 * hits[occurs] / sums[occurs])) if occurs.any() else 1.0


class Calibration:
    """Running counts of how often what has a given probability is true.

    `add` each image.  With one class the probability is that of the foreground; with several it is that of the
    likeliest class, which is true where it is the pixel's class.
    """

    def __init__(self, bins: int = 15) -> None:
        self._pixels = np.zeros(bins)
        self._probability = np.zeros(bins)  # sums over the pixels of each bin
        self._true = np.zeros(bins)

    def add(self, probability: NDArray[np.float32], truth: NDArray[Any]) -> None:
        """Count one image: probability (H, W, classes), truth (H, W) class numbers."""
        if probability.shape[:2] != truth.shape:
            raise ValueError(f"probability is {probability.shape}, truth {truth.shape}; height and width must agree")
        if probability.shape[2] == 1:
            claimed, true = probability[:, :, 0], truth != 0
        else:
            claimed, true = probability.max(axis=2), probability.argmax(axis=2) == truth
        bins = len(self._pixels)
        place = np.minimum((claimed * bins).astype(np.int64), bins - 1).ravel()
        self._pixels += np.bincount(place, minlength=bins)
        self._probability += np.bincount(place, claimed.ravel(), bins)
        self._true += np.bincount(place, true.ravel(), bins)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Of each bin that holds pixels: mean probability, share that is true, number of pixels."""
        held = self._pixels > 0
        pixels = self._pixels[held]
        return self._probability[held] / pixels, self._true[held] / pixels, pixels

    @property
    def expected_error(self) -> float:
        """Expected calibration error: |mean probability - share that is true|, averaged over the pixels."""
        claimed, true, pixels = self.curve()
        if not pixels.size:
            raise ValueError("no image was added, so there is nothing to score")
        return float(np.average(np.abs(claimed - true), weights=pixels))


class Thresholds:
    """What other thresholds than the usual 0.5 would score: 0.05, 0.1, ... 0.95, for networks of one class.

    `add` each image.  One threshold for all images is a setting that can be chosen, on images that are neither trained
    nor reported on.  The best one for each image cannot be known without its truth: what that scores says how much of
    the error is in where the outlines are drawn, wide or tight, rather than in what was found.
    """

    values = np.arange(1, 20) / 20

    def __init__(self) -> None:
        self._overlaps = [Overlap() for _ in self.values]

    def add(self, probability: NDArray[np.float32], truth: NDArray[Any]) -> None:
        """Count one image: probability (H, W, 1), truth (H, W), where what is not 0 is foreground."""
        if probability.shape != (*truth.shape, 1):
            raise ValueError(f"probability is {probability.shape}, truth {truth.shape}; it must have one class and fit")
        for value, overlap in zip(self.values, self._overlaps, strict=True):
            overlap.add(probability[:, :, 0] >= value, truth)

    def pooled(self) -> list[float]:
        """Pooled IoU of each of `values`."""
        return [float(overlap.figures()["iou"]) for overlap in self._overlaps]

    def best_of_each_image(self) -> dict[str, float | int]:
        """As `Overlap.figures`, of each image at the threshold that suits it best."""
        best = Overlap()
        for image, which in enumerate(np.argmax([overlap.per_image_iou for overlap in self._overlaps], axis=0)):
            best._intersections.append(self._overlaps[which]._intersections[image])
            best._sums.append(self._overlaps[which]._sums[image])
        return best.figures()
