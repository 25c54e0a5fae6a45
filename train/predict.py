"""Running a trained network, in PyTorch or frozen, over whole images of any size, and scoring both by the same code.

`logits` is the slow, obvious path that the runtime's masks are compared with: the image is normalised, mirrored out at
the bottom and right to a size that the network takes (all round for "valid" padding), run whole, and cropped back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data import Sample
from train.metrics import Calibration, Overlap, Thresholds
from train.model import UNet, output_size
from unet_fast.images import mirrored, to_unit
from unet_fast.spec import UNetSpec

if TYPE_CHECKING:
    from unet_fast.engine import Engine, Tiling

STANDARDISE_EPSILON = 1e-6


def normalise(pixels: NDArray[np.float32], spec: UNetSpec) -> NDArray[np.float32]:
    """(H, W, C) in [0, 1] -> the network's input of the same shape, by the spec's rule."""
    if spec.normalisation == "standardise":
        mean, deviation = pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)
        return ((pixels - mean) / (deviation + STANDARDISE_EPSILON)).astype(np.float32)
    return ((pixels - np.asarray(spec.mean)) / np.asarray(spec.std)).astype(np.float32)


def input_indices(spec: UNetSpec, size: int) -> NDArray[np.int64]:
    """Which of the `size` pixels along an axis feed each input pixel of the network, mirrored at the edges.

    The first `size` output pixels of the network then belong to the `size` pixels of the image.
    """
    longest = size + 2 ** (spec.depth + 8)
    for length in range(size, longest):
        try:
            out = output_size(spec, length)
        except ValueError:
            continue
        if out >= size:
            margin = (length - out) // 2 if spec.padding == "valid" else 0
            return mirrored(np.arange(-margin, length - margin), size)
    raise ValueError(f"no input size up to {longest} gives {size} output pixels")


def to_input(pixels: NDArray[np.float32], spec: UNetSpec) -> NDArray[np.float32]:
    """(H, W, C) normalised pixels -> (C, H', W') of a size that the network takes."""
    height, width = pixels.shape[:2]
    window = np.ix_(input_indices(spec, height), input_indices(spec, width))
    return np.ascontiguousarray(pixels[window].transpose(2, 0, 1))


def logits(model: UNet, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W, in_channels) pixels of any supported type -> (classes, H, W) logits.  Runs without dropout."""
    height, width = pixels.shape[:2]
    parameter = next(model.parameters())
    batch = torch.from_numpy(to_input(normalise(to_unit(pixels), model.spec), model.spec))[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            out: Tensor = model(batch.to(parameter.device, parameter.dtype))
    finally:
        model.train(was_training)
    return out[0, :, :height, :width].float().cpu().numpy()


def to_mask(values: NDArray[np.float32], spec: UNetSpec) -> NDArray[np.uint8]:
    """(classes, H, W) logits -> (H, W) class numbers; with one class 1 where the probability is at least 0.5."""
    if spec.classes == 1:
        return (values[0] >= 0).astype(np.uint8)
    return values.argmax(axis=0).astype(np.uint8)


@dataclass(frozen=True)
class Frozen:
    """An engine that is scored like a network in PyTorch; sizes other than its own are tiled by `tiling`."""

    engine: Engine
    tiling: Tiling = "fast"

    @property
    def spec(self) -> UNetSpec:
        """What matters for images, masks and scores: channels, classes and output; the layers are not known."""
        info = self.engine.info
        return UNetSpec.from_dict({"in_channels": info.channels, "classes": info.classes, "output": info.output})


@dataclass(frozen=True)
class Turned:
    """A network that sees each image in the eight symmetries of the square, in eight times the time.

    Probabilities are the mean of the eight, masks are those of the mean.
    """

    network: UNet | Frozen

    @property
    def spec(self) -> UNetSpec:
        """That of the network."""
        return self.network.spec

    def probability(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """As the function `probability`."""
        total = np.zeros((*pixels.shape[:2], self.spec.classes), np.float32)
        for image, turned in ((pixels, total), (pixels[:, ::-1], total[:, ::-1])):
            for quarters in range(4):
                seen = probability(self.network, np.ascontiguousarray(np.rot90(image, quarters)))
                turned += np.rot90(seen, -quarters) / np.float32(8)
        return total


Network = UNet | Frozen | Turned


def probability(network: Network, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W, in_channels) pixels of any supported type -> (H, W, classes) probabilities, or values of a regression."""
    if isinstance(network, Turned):
        return network.probability(pixels)
    if isinstance(network, Frozen):
        result = network.engine.probability(pixels, tiling=network.tiling)
        return result.reshape(*result.shape[:2], network.engine.classes)
    values = torch.from_numpy(logits(network, pixels))
    if network.spec.output == "sigmoid":
        values = values.sigmoid()
    elif network.spec.output == "softmax":
        values = values.softmax(dim=0)
    return values.permute(1, 2, 0).numpy()


def predictions(network: Network, samples: Iterable[Sample]) -> Iterator[tuple[Sample, NDArray[Any]]]:
    """Each sample with its predicted mask (H, W) uint8, or values (H, W, classes) float32 for regression."""
    for sample in samples:
        if network.spec.output == "identity":
            yield sample, probability(network, sample.pixels)
        elif isinstance(network, Frozen):
            mask = network.engine.segment(sample.pixels, tiling=network.tiling)
            yield sample, (mask != 0).astype(np.uint8) if network.spec.classes == 1 else mask
        elif isinstance(network, Turned):
            seen = probability(network, sample.pixels)
            yield sample, (seen[:, :, 0] >= 0.5 if network.spec.classes == 1 else seen.argmax(axis=2)).astype(np.uint8)
        else:
            yield sample, to_mask(logits(network, sample.pixels), network.spec)


def calibration(network: Network, samples: Iterable[Sample]) -> Calibration:
    """How often what the network gives a probability is true; not for regressions, which give none."""
    if network.spec.output == "identity":
        raise ValueError("a regression gives values and no probabilities, so it has no calibration")
    counts = Calibration()
    for sample in samples:
        counts.add(probability(network, sample.pixels), sample.target)
    return counts


def thresholds(network: Network, samples: Iterable[Sample]) -> Thresholds:
    """What other thresholds than 0.5 would score; for networks of one class."""
    if network.spec.output != "sigmoid":
        raise ValueError(f"thresholds are of networks of one class, the output of this one is {network.spec.output}")
    counts = Thresholds()
    for sample in samples:
        counts.add(probability(network, sample.pixels), sample.target)
    return counts


def evaluate(network: Network, samples: Iterable[Sample]) -> tuple[dict[str, float | int], list[float]]:
    """(figures over all samples, the score of each).

    Segmentation: IoU and Dice as in `train.metrics`, scored per image by IoU.  Regression: mean absolute error "l1",
    "mse" and "psnr" in dB, of values in [0, 1], scored per image by the negative absolute error.
    """
    if network.spec.output != "identity":
        overlap = Overlap(max(network.spec.classes, 2))
        for sample, mask in predictions(network, samples):
            overlap.add(mask, sample.target)
        return overlap.figures(), overlap.per_image_iou
    absolute, squared = [], []
    for sample, values in predictions(network, samples):
        difference = values.astype(np.float64) - sample.target
        absolute.append(float(np.abs(difference).mean()))
        squared.append(float(np.square(difference).mean()))
    mse = float(np.mean(squared))
    figures: dict[str, float | int] = {"images": len(absolute), "l1": float(np.mean(absolute)), "mse": mse}
    figures["psnr"] = float(10 * np.log10(1 / max(mse, 1e-12)))
    return figures, [-value for value in absolute]


def headline(figures: dict[str, float | int]) -> float:
    """The one number, larger being better, by which checkpoints are ranked: pooled IoU, or PSNR for regression."""
    return float(figures["iou"] if "iou" in figures else figures["psnr"])
