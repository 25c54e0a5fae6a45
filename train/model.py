"""The U-Net in plain PyTorch: the network that is trained, and the judge that every faster form is tested against.

    spec = UNetSpec.preset("relunet16", in_channels=1)
    logits = UNet(spec)(pixels)           # pixels (N, C, H, W) float, already normalised; logits (N, classes, H', W')

Names of modules, and so the keys of `state_dict`, are those listed in `unet_fast/spec.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from unet_fast.spec import BATCH_NORM_EPSILON, LEAKY_SLOPE, UNetSpec


class Stage(nn.Module):
    """The 3x3 convolutions of one level, each followed by batch norm (if any) and the activation.

    (N, in_channels, H, W) -> (N, out_channels, H, W) with "same" padding; each convolution takes two pixels off
    H and W with "valid".
    """

    def __init__(self, spec: UNetSpec, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.count = spec.convs_per_stage
        for index in range(self.count):
            channels = in_channels if index == 0 else out_channels
            conv = nn.Conv2d(channels, out_channels, 3, padding=int(spec.padding == "same"), bias=not spec.batch_norm)
            self.add_module(f"conv{index}", conv)
            if spec.batch_norm:
                self.add_module(f"norm{index}", nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPSILON))
        self.activation = nn.ReLU() if spec.activation == "relu" else nn.LeakyReLU(LEAKY_SLOPE)
        # A lone convolution has no "between the two convolutions", so no dropout either.
        self.dropout = nn.Dropout(dropout if self.count == 2 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(self.count):
            if index == 1:
                x = self.dropout(x)
            x = getattr(self, f"conv{index}")(x)
            if hasattr(self, f"norm{index}"):
                x = getattr(self, f"norm{index}")(x)
            x = self.activation(x)
        return x


class NearestConv(nn.Conv2d):
    """Nearest x2, then a 2x2 convolution with one row and column of zeros at the bottom and right: H, W -> 2H, 2W."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def _upsampler(spec: UNetSpec, level: int) -> tuple[nn.Module, int]:
    """The module that returns to `level` from the one below, and its output channels."""
    below, here = spec.width(level + 1), spec.width(level)
    if spec.upsampling == "transpose":
        return nn.ConvTranspose2d(below, here, 2, stride=2), here
    if spec.upsampling == "nearest_conv":
        return NearestConv(below, here), here
    if spec.upsampling == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest"), below
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=spec.align_corners), below


def _crop_centre(skip: Tensor, like: Tensor) -> Tensor:
    """`skip` cut to the height and width of `like`; an odd surplus row or column goes at the bottom or right."""
    height, width = like.shape[-2:]
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return skip[..., top : top + height, left : left + width]


class UNet(nn.Module):
    """The network of `spec`.

    `forward` takes (N, in_channels, H, W) float pixels, normalised as `spec.normalisation` says, and returns logits
    (N, classes, H, W), smaller with "valid" padding.  With "same" padding H and W must be multiples of 2**depth;
    with "valid" every level must be even where it is pooled.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        dropout = spec.dropout or (0.0,) * (2 * spec.depth + 1)
        channels = spec.in_channels
        for level in range(spec.depth):
            self.add_module(f"encoder{level}", Stage(spec, channels, spec.width(level), dropout[level]))
            channels = spec.width(level)
        self.bottleneck = Stage(spec, channels, spec.width(spec.depth), dropout[spec.depth])
        for level in reversed(range(spec.depth)):
            up, channels = _upsampler(spec, level)
            self.add_module(f"up{level}", up)
            rate = dropout[2 * spec.depth - level]
            self.add_module(f"decoder{level}", Stage(spec, channels + spec.width(level), spec.width(level), rate))
        self.head = nn.Conv2d(spec.width(0), spec.classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation: weights normal with variance 2 / fan-in, biases zero.

        The head is 1/100 of that, so that training starts at a probability near one half whatever the image.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # Each output pixel of a 2x2 stride-2 transposed convolution sees one tap of every input channel.
                fan_in = module.in_channels
                if isinstance(module, nn.Conv2d):
                    fan_in *= module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.head.weight *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        skips = []
        for level in range(self.spec.depth):
            x = getattr(self, f"encoder{level}")(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for level in reversed(range(self.spec.depth)):
            x = getattr(self, f"up{level}")(x)
            if self.spec.up_activation == "relu":
                x = functional.relu(x)
            skip = _crop_centre(skips[level], x)
            x = torch.cat((x, skip) if self.spec.concat == "up_first" else (skip, x), dim=1)
            x = getattr(self, f"decoder{level}")(x)
        return self.head(x)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.spec.in_channels:
            raise ValueError(f"input must be (N, {self.spec.in_channels}, H, W), got {tuple(x.shape)}")
        output_size(self.spec, x.shape[2], "height")
        output_size(self.spec, x.shape[3], "width")


def output_size(spec: UNetSpec, size: int, what: str = "size") -> int:
    """Output pixels along an axis of `size` input pixels.  `ValueError` where the network cannot take that size."""
    if spec.padding == "same":
        step = 2**spec.depth
        if size <= 0 or size % step:
            raise ValueError(f"{what} must be a multiple of {step} at depth {spec.depth}, got {size}")
        return size
    loss = 2 * spec.convs_per_stage  # rows that the convolutions of one stage eat
    here = size
    for level in range(spec.depth):
        here -= loss
        if here <= 0 or here % 2:
            raise ValueError(
                f"{what} {size} does not fit the unpadded network: {here} pixels reach the pooling of level {level}, "
                f"an even positive number is needed"
            )
        here //= 2
    here -= loss
    for _ in range(spec.depth):
        here = 2 * here - loss
    if here <= 0:
        raise ValueError(f"{what} {size} is too small for the unpadded network: nothing is left at the output")
    return here


def summary(model: UNet, height: int | None = None, width: int | None = None) -> str:
    """A table of layers with their output shapes and parameters, for one image of `height` x `width` pixels.

    The size defaults to `spec.tile`.  Needs one forward pass.
    """
    height, width = height or model.spec.tile, width or model.spec.tile
    rows: list[tuple[str, str, str]] = []

    def note(name: str, layer: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            rows.append((f"{name} ({type(layer).__name__})", _shape(output.shape), f"{count_parameters(layer):,}"))

        handles.append(layer.register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, layer in model.named_modules():
        # Layers with weights, and the upsampling without: what changes shape.
        if not list(layer.children()) and (list(layer.parameters(recurse=False)) or isinstance(layer, nn.Upsample)):
            note(name, layer)
    parameter = next(model.parameters())
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(parameter.new_zeros(1, model.spec.in_channels, height, width))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    header = ("layer", "output (C, H, W)", "parameters")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]

    def line(row: tuple[str, str, str]) -> str:
        return f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}"

    rule = "-" * (sum(widths) + 4)
    total = f"{count_parameters(model):,} parameters, input {_shape((1, model.spec.in_channels, height, width))}"
    return "\n".join([line(header), rule, *map(line, rows), rule, total])


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in list(shape)[1:])
