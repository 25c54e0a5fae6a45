"""What the rows run: the networks with their float64 truth, frozen, and small graphs around one kind of op."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.networks import random_weights
from train.model import UNet
from unet_fast.freeze import Precision, freeze
from unet_fast.graph import Graph, from_spec
from unet_fast.plan import cost
from unet_fast.spec import UNetSpec

Array = NDArray[Any]

#: Distinct images; larger batches repeat them, so that each image of a batch is checked and float64 stays affordable.
IMAGES = 4


@dataclass(frozen=True)
class Network:
    """A spec with random weights, and uint8 images for it: (IMAGES, side, side, channels)."""

    name: str
    spec: UNetSpec
    side: int
    folder: Path

    @functools.cached_property
    def weights(self) -> dict[str, Array]:
        """Random, of He scale.  The mean logit lies two standard deviations above 0, so that, as of a trained network,
        most pixels are decided: near 0 the relative error of a probability would be the absolute one of its logit, and
        the sign of most logits a matter of rounding.
        """
        weights = random_weights(self.spec, seed=1)
        logits = _forward(self.spec, weights, self.images[:1], torch.float32)
        weights["head.bias"] += 2 * logits.std() - logits.mean()
        return weights

    @functools.cached_property
    def images(self) -> Array:
        shape = (IMAGES, self.side, self.side, self.spec.in_channels)
        return np.random.default_rng(2).integers(0, 256, shape, np.uint8)

    def batch(self, count: int) -> Array:
        """`count` images, uint8 (count, side, side, channels)."""
        return self.images[np.arange(count) % IMAGES]

    @functools.cached_property
    def torch_model(self) -> UNet:
        """The network in PyTorch, float32."""
        return _model(self.spec, self.weights)

    def pixels(self, count: int) -> torch.Tensor:
        """The batch as the network in PyTorch takes it: float32 (count, channels, side, side) in [0, 1]."""
        return torch.from_numpy(self.batch(count)).permute(0, 3, 1, 2).float().div(255).contiguous()

    def truth(self, image: Array) -> Array:
        """Logits in float64 for images (N, h, w, channels), as (N, h, w, classes)."""
        return _forward(self.spec, self.weights, image, torch.float64)

    @functools.cached_property
    def _image_logits(self) -> dict[int, Array]:
        """The truth of those of `images` that were asked for."""
        return {}

    def batch_logits(self, count: int) -> Array:
        """The truth of `batch(count)`: (count, side, side, classes)."""
        for index in range(len(self._image_logits), min(count, IMAGES)):
            self._image_logits[index] = self.truth(self.images[index : index + 1])[0]
        return np.stack([self._image_logits[index % IMAGES] for index in range(count)])

    @functools.cached_property
    def flops(self) -> int:
        """Operations (2 per multiply-add) of one image as the network is written, before any is saved by fusing or by
        Winograd's algorithm: the same for everyone who computes it.
        """
        graph = from_spec(self.spec, self.weights)
        return sum(cost(graph, node, self.side, self.side).flops for node in graph.nodes)

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes of one image and of all weights in float32, each moved once: the least that anyone moves."""
        weights = sum(value.size for value in self.weights.values())
        return 4 * weights + self.side**2 * (self.spec.in_channels + self.spec.classes)

    def engine_file(self, precision: Precision, gpu_target: str = "") -> Path:
        """The network frozen, aiming at `precision`, for the CPU and a GPU such as "sm_90"; made once."""
        path = self.folder / f"{self.name}-{precision}{gpu_target}.unet"
        if not path.exists():
            targets = ("cpu", gpu_target) if gpu_target else ("cpu",)
            calibration = self.images if precision == "int8" else None
            freeze((self.spec, self.weights), path, precision=precision, targets=targets, calibration=calibration)
        return path


def _model(spec: UNetSpec, weights: dict[str, Array]) -> UNet:
    model = UNet(spec).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def _forward(spec: UNetSpec, weights: dict[str, Array], images: Array, dtype: torch.dtype) -> Array:
    """Logits of uint8 images (N, h, w, channels), as (N, h, w, classes)."""
    with torch.inference_mode():
        logits = _model(spec, weights).to(dtype)(torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255)
    return logits.permute(0, 2, 3, 1).numpy()


class Networks:
    """The networks of a session, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Network] = {}

    def preset(self, name: str) -> Network:
        """One of the two presets on colour images, 256 x 256 x 3."""
        return self._get(name, UNetSpec.preset(name, in_channels=3))

    def of_width(self, base_width: int) -> Network:
        """`relunet16` with another base width."""
        return self._get(f"width{base_width}", UNetSpec(in_channels=3, base_width=base_width))

    def tiny(self) -> Network:
        """So small that what remains is the cost of a call."""
        return self._get("tiny", UNetSpec(base_width=8, depth=2, convs_per_stage=1, tile=16))

    def _get(self, name: str, spec: UNetSpec) -> Network:
        if name not in self._made:
            self._made[name] = Network(name, spec, spec.tile, self._folder)
        return self._made[name]


def relative_error(result: Array, truth: Array) -> float:
    """||result - truth|| / ||truth||; NaN if any value is."""
    return float(np.linalg.norm(np.float64(result) - truth) / np.linalg.norm(truth))


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def repeated_ops(kind: str, width: int, repeats: int) -> tuple[Graph, Graph]:
    """Two graphs that differ by `repeats` ops of a kind at full resolution: with one, and with 1 + `repeats`.

    "conv"     3x3 convolution with ReLU, `width` to `width` channels.
    "down_up"  2x2 max pooling, 3x3 convolution to 2 `width` channels, and from there the transposed convolution, concat
               and 3x3 convolution back to `width`.
    """
    return _chain(kind, width, 1), _chain(kind, width, 1 + repeats)


def _chain(kind: str, width: int, count: int) -> Graph:
    random = np.random.default_rng(0)

    def weight(outputs: int, kernel: int, inputs: int) -> Array:
        return random.normal(0, (2 / (inputs * kernel * kernel)) ** 0.5, (outputs, kernel, kernel, inputs))

    def conv(name: str, x: str, outputs: int, inputs: int) -> str:
        x = graph.conv(name, x, weight(outputs, 3, inputs), padding=(1, 1, 1, 1))
        return graph.activation(f"{name}.relu", x, "relu")

    graph = Graph(1)
    x = conv("stem", graph.normalise(), width, 1)
    for index in range(count):
        if kind == "conv":
            x = conv(f"conv{index}", x, width, width)
        else:
            low = conv(f"low{index}", graph.pool(f"pool{index}", x), 2 * width, width)
            up = graph.conv_transpose(f"up{index}", low, weight(width, 2, 2 * width))
            x = conv(f"high{index}", graph.concat(f"concat{index}", up, x), width, 2 * width)
    return graph.finish(graph.conv("logits", x, weight(1, 1, width)), "sigmoid")
