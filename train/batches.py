"""The batches that training steps see, made in a thread beside them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.augment import augment, bend, window
from train.data import Sample
from train.predict import normalise, to_input
from train.processes import Processes
from train.recipe import Recipe
from train.weights import pixel_weights
from unet_fast.images import to_unit
from unet_fast.spec import UNetSpec


class Batch(NamedTuple):
    """What one process sees in one step.

    pixels    (N, C, H', W') float32, normalised, of a size that the network takes
    target    (N, H, W) uint8 class numbers, or (N, H, W, classes) float32 for regression
    weights   (N, H, W) float32 of the cross-entropy, or None where all pixels count alike
    """

    pixels: Tensor
    target: Tensor
    weights: Tensor | None


class Batches:
    """Batches in the order of the steps, made one ahead in a thread.

    Each pass over the data has its own order, drawn from (seed, pass); each image its own changes, from the seed and
    its place in the run.  So several processes, which take turns at the places, see what one alone would see.
    """

    def __init__(
        self, samples: Sequence[Sample], spec: UNetSpec, recipe: Recipe, step: int, processes: Processes
    ) -> None:
        self.samples, self.spec, self.recipe, self.step, self.processes = samples, spec, recipe, step, processes
        self.pool = ThreadPoolExecutor(1)
        self.pending: list[Future[Batch]] = []

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def next(self) -> Batch:
        """The batch of the next step."""
        while len(self.pending) < 2:
            self.pending.append(self.pool.submit(self.make, self.step))
            self.step += 1
        return self.pending.pop(0).result()

    def make(self, step: int) -> Batch:
        """This process's part of the batch of `step`."""
        first = step * self.recipe.batch
        places = range(first + self.processes.rank, first + self.recipe.batch, self.processes.count)
        parts = [self._image(place) for place in places]
        pixels = torch.from_numpy(np.stack([image for image, _, _ in parts]))
        target = torch.from_numpy(np.stack([target for _, target, _ in parts]))
        weights = [weights for _, _, weights in parts if weights is not None]
        return Batch(pixels, target, torch.from_numpy(np.stack(weights)) if weights else None)

    def _image(self, place: int) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32] | None]:
        recipe, spec = self.recipe, self.spec
        epoch, index = divmod(place, len(self.samples))
        order = np.random.default_rng([recipe.seed, 1, epoch]).permutation(len(self.samples))
        random = np.random.default_rng([recipe.seed, 0, place])
        sample = self.samples[order[index]]
        segmenting = spec.output != "identity"
        full = recipe.augment in ("full", "stains")
        image, target = to_unit(sample.pixels), sample.target
        if recipe.augment != "none":
            image, target = augment(
                image, target, random, zoom=full, intensity=full and segmenting, stains=recipe.augment == "stains"
            )
        if random.random() < recipe.elastic:
            image, target = bend(image, target, random)
        image = normalise(image, spec)
        if full and segmenting and spec.normalisation == "standardise":
            # Standardising undoes changes of gain and offset; how far objects stand out still varies with how many of
            # them an image holds.
            image = image * np.float32(np.exp(random.uniform(-0.4, 0.4))) + np.float32(random.uniform(-0.2, 0.2))
        image, target = window(image, target, recipe.window, random, follow=segmenting)
        weights = None
        if recipe.weighted:
            weights = pixel_weights(target, recipe.class_weights, recipe.boundary_weight, recipe.boundary_width)
        return to_input(image, spec), target, weights
