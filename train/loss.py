"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn import functional as collective
from torch.nn import functional

from unet_fast.spec import UNetSpec


def loss(logits: Tensor, target: Tensor, spec: UNetSpec, weights: Tensor | None = None) -> Tensor:
    """The scalar to minimise, of logits (N, classes, H', W') with H' >= H and target (N, H, W[, classes]).

    One class: binary cross-entropy plus (1 - Dice).  Several: cross-entropy plus (1 - mean Dice of the classes).
    Regression: mean absolute plus mean squared error.  Dice is of probabilities, pooled over the batch, and over the
    batches of all processes where there are several.  `weights` (N, H, W) multiply the cross-entropy of each pixel.
    """
    logits = logits[:, :, : target.shape[1], : target.shape[2]]
    if spec.output == "identity":
        wanted = target.permute(0, 3, 1, 2).float()
        return functional.l1_loss(logits, wanted) + functional.mse_loss(logits, wanted)
    if spec.classes == 1:
        truth = target[:, None].float()
        entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")[:, 0]
        probability = logits.sigmoid()
    else:
        entropy = functional.cross_entropy(logits, target.long(), reduction="none")
        truth = functional.one_hot(target.long(), spec.classes).permute(0, 3, 1, 2).float()
        probability = logits.softmax(dim=1)
    if weights is not None:
        entropy = entropy * weights
    axes = (0, 2, 3)
    sums = torch.stack([(probability * truth).sum(axes), probability.sum(axes), truth.sum(axes)])
    if distributed.is_initialized():
        # Its derivative is the sum over the processes; DistributedDataParallel divides by their number.
        sums = collective.all_reduce(sums)
    common, predicted, true = sums
    # The 1 keeps the ratio defined, and near 1, for a class that no pixel of the batch has.
    dice = (2 * common + 1) / (predicted + true + 1)
    return entropy.mean() + 1 - dice.mean()
