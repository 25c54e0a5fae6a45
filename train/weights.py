"""How much each pixel counts in the cross-entropy: class weights, and more in the narrow gaps between objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: Beyond this many times the width the boundary term is below 0.0004 of its peak and is taken as 0.
REACH = 4.0


def pixel_weights(
    target: NDArray[Any], class_weights: Sequence[float] = (), boundary_weight: float = 0.0, boundary_width: float = 5.0
) -> NDArray[np.float32]:
    """The weight of each pixel of `target` (H, W) class numbers: (H, W) float32.

    class_weights     one per class, background first, in any unit; none: 1 for all
    boundary_weight   w0 and
    boundary_width    sigma, in pixels, of equation 2 of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks
                      for Biomedical Image Segmentation" (MICCAI 2015), who took 10 and about 5:

        w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

    with d1 and d2 the distances to the nearest and the second nearest object.  The second term is of background pixels
    only, which are what keeps two objects apart.
    """
    weights = np.asarray(class_weights, np.float32)[target] if class_weights else np.ones(target.shape, np.float32)
    if not boundary_weight:
        return weights
    distance = sum(two_nearest(target, int(np.ceil(REACH * boundary_width))))
    gap = boundary_weight * np.exp(-np.square(distance) / (2 * boundary_width**2))
    return (weights + np.where(target == 0, gap, 0)).astype(np.float32)


def two_nearest(target: NDArray[Any], reach: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in pixels of each pixel of `target` (H, W) to the nearest and the second nearest object.

    An object is a connected part, by the four neighbours, of the pixels of one class.  Distances above `reach` pixels
    may be infinite.
    """
    nearest, second = np.full(target.shape, np.inf), np.full(target.shape, np.inf)
    for label in np.unique(target[target > 0]):
        objects, _ = ndimage.label(target == label)
        for number, box in enumerate(ndimage.find_objects(objects), start=1):
            # The object lies within its box, so distances in the wider box are those in the whole image.
            wide = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            distance = ndimage.distance_transform_edt(objects[wide] != number)
            second[wide] = np.minimum(second[wide], np.maximum(nearest[wide], distance))
            nearest[wide] = np.minimum(nearest[wide], distance)
    return nearest, second
