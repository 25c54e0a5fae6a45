"""`UNetSpec`: every architecture choice of a U-Net, validated, with its defaults.

A spec is all that is needed to build the network in PyTorch (`train.model.UNet`) and, from the same
numbers, the graph that is frozen (`unet_fast.graph.from_spec`).  Names of weights follow from it too:

    encoder0.conv0, encoder0.conv1, ...   one stage per level, level 0 at full resolution
    bottleneck.conv0, bottleneck.conv1
    up3, decoder3.conv0, decoder3.conv1   decoder stages carry the number of the level they return to
    head                                  the 1x1 convolution

A `conv` K has `K.weight` (out, in, ky, kx) and `K.bias`; with batch norm it is followed by `norm` of the same
number (`encoder0.norm0.weight`, `.bias`, `.running_mean`, `.running_var`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Output = Literal["sigmoid", "softmax", "identity"]
Padding = Literal["same", "valid"]
Upsampling = Literal["transpose", "nearest_conv", "nearest", "bilinear"]
Concat = Literal["up_first", "skip_first"]
Activation = Literal["relu", "leaky_relu"]

LEAKY_SLOPE = 0.01  # PyTorch's default negative slope

#: Batch norm adds this to the variance (PyTorch's default).
BATCH_NORM_EPSILON = 1e-5

_CHOICES: dict[str, tuple[str, ...]] = {
    "output": ("sigmoid", "softmax", "identity"),
    "padding": ("same", "valid"),
    "upsampling": ("transpose", "nearest_conv", "nearest", "bilinear"),
    "concat": ("up_first", "skip_first"),
    "activation": ("relu", "leaky_relu"),
    "up_activation": ("none", "relu"),
    "normalisation": ("fixed", "standardise"),
}


@dataclass(frozen=True)
class UNetSpec:
    """The architecture of a U-Net.  Immutable; a wrong value raises `ValueError` that names the field.

    in_channels       1..4 image channels.
    classes           output channels: 1 for foreground/background, N for N classes or N regressed quantities.
    output            what turns logits into the result; "auto" is "sigmoid" for one class and "softmax" for more.
                      "identity" is for regression (denoising, phase): any number of channels, no mask.
    base_width        filters of the first stage, a multiple of 8; each level doubles them.
    depth             number of 2x2 poolings, 2..5.
    convs_per_stage   3x3 convolutions per stage, 1 or 2.
    batch_norm        batch norm between each 3x3 convolution and its activation (the convolution then has no bias).
    padding           "same" (zero padding, output as large as the input) or "valid" (Ronneberger 2015: no padding,
                      skips are cropped at the centre, 572 -> 388 at depth 4).
    upsampling        "transpose": 2x2 stride-2 transposed convolution, width halved.
                      "nearest_conv": nearest x2, then a 2x2 convolution padded at right and bottom, width halved.
                      "nearest", "bilinear": x2 without weights; the concat is then three widths wide.
    align_corners     for "bilinear": the sampling grid, as in `torch.nn.Upsample`.
    up_activation     activation after the up-convolution ("transpose" and "nearest_conv" only).
    concat            order of the channels: "up_first" ([upsampled, skip]) or "skip_first".
    activation        "relu" or "leaky_relu" (slope 0.01) after each 3x3 convolution.
    dropout           per stage, training only, from the first encoder stage over the bottleneck to the last decoder
                      stage (2 * depth + 1 rates); between the two convolutions of a stage.  () is none.
    tile              side in pixels of the images that the network was trained on.
    normalisation     "fixed": (v - mean) / std per channel, v in [0, 1] (an 8-bit image over 255, a 16-bit one over
                      65535).  "standardise": (v - m) / (s + 1e-6) with mean m and population standard deviation s of
                      all pixels and channels of the image that is segmented.
    mean, std         for "fixed": one number per channel, or one for all.
    class_names       names of the classes, for people; () is none.
    """

    in_channels: int = 1
    classes: int = 1
    output: Output | Literal["auto"] = "auto"
    base_width: int = 16
    depth: int = 4
    convs_per_stage: int = 2
    batch_norm: bool = False
    padding: Padding = "same"
    upsampling: Upsampling = "transpose"
    align_corners: bool = False
    up_activation: Literal["none", "relu"] = "none"
    concat: Concat = "up_first"
    activation: Activation = "relu"
    dropout: tuple[float, ...] = ()
    tile: int = 256
    normalisation: Literal["fixed", "standardise"] = "fixed"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dropout", "mean", "std", "class_names"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif not isinstance(value, tuple):
                raise ValueError(f"UNetSpec.{name} must be a tuple, got {value!r}")
        if self.output == "auto":
            object.__setattr__(self, "output", "sigmoid" if self.classes == 1 else "softmax")
        for name, low, high in (
            ("in_channels", 1, 4),
            ("classes", 1, 256),
            ("base_width", 8, 1024),
            ("depth", 2, 5),
            ("convs_per_stage", 1, 2),
            ("tile", 16, 16384),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"UNetSpec.{name} must be an integer from {low} to {high}, got {value!r}")
        for name in ("batch_norm", "align_corners"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"UNetSpec.{name} must be True or False, got {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"UNetSpec.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.base_width % 8:
            raise ValueError(f"UNetSpec.base_width must be a multiple of 8, got {self.base_width}")
        if self.output == "sigmoid" and self.classes != 1:
            raise ValueError(f'UNetSpec.output "sigmoid" needs classes=1, got classes={self.classes}')
        if self.output == "softmax" and self.classes == 1:
            raise ValueError('UNetSpec.output "softmax" needs classes >= 2, got classes=1')
        if self.align_corners and self.upsampling != "bilinear":
            raise ValueError('UNetSpec.align_corners is for upsampling="bilinear" only')
        if self.up_activation != "none" and self.upsampling not in ("transpose", "nearest_conv"):
            raise ValueError(f"UNetSpec.up_activation needs an up-convolution, upsampling is {self.upsampling!r}")
        stages = 2 * self.depth + 1
        if self.dropout and len(self.dropout) != stages:
            raise ValueError(f"UNetSpec.dropout needs {stages} rates at depth {self.depth}, got {len(self.dropout)}")
        if any(not 0 <= rate < 1 for rate in self.dropout):
            raise ValueError(f"UNetSpec.dropout rates must be in [0, 1), got {self.dropout}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.in_channels):
                raise ValueError(f"UNetSpec.{name} needs 1 or {self.in_channels} numbers, got {len(values)}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if any(not value > 0 for value in self.std):
            raise ValueError(f"UNetSpec.std must be positive, got {self.std}")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"UNetSpec.class_names needs {self.classes} names, got {len(self.class_names)}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> UNetSpec:
        """One of the two networks of the paper, with fields changed by keyword.

        "relunet16"  the text's net, filters 16-32-64-128-256 (1,941,105 parameters at 3 channels).
        "relunet64"  the tables' net, filters 64-128-256-512-1024, the same form.
        """
        widths = {"relunet16": 16, "relunet64": 64}
        if name not in widths:
            raise ValueError(f"preset must be one of {', '.join(widths)}, got {name!r}")
        dropout = (0.1, 0.1, 0.2, 0.2, 0.3, 0.2, 0.2, 0.1, 0.1)
        return cls(**{"base_width": widths[name], "dropout": dropout, **changes})

    def width(self, level: int) -> int:
        """Filters of the stage at `level`; 0 is full resolution, `depth` the bottleneck."""
        return self.base_width << level

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `UNetSpec.from_dict` gives the same spec back."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetSpec:
        """The inverse of `to_dict`.  An unknown field raises `ValueError`."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"UNetSpec has no field {', '.join(sorted(unknown))}")
        return cls(**values)
