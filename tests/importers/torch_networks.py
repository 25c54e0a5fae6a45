"""PyTorch networks as other projects publish them: their keys, shapes and order of computation, small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Layout of a checkpoint of milesial/Pytorch-UNet: names of the stages, and what else changed.
LAYOUTS = {
    "2019-05": {"first": "conv.conv", "down": "mpconv.1.conv", "up": "conv.conv", "halves": False, "bias": True},
    "2019-10": {
        "first": "double_conv",
        "down": "maxpool_conv.1.double_conv",
        "up": "conv.double_conv",
        "halves": False,
        "bias": True,
    },
    "2020-03": {
        "first": "double_conv",
        "down": "maxpool_conv.1.double_conv",
        "up": "conv.double_conv",
        "halves": True,
        "bias": True,
    },
    "2021-12": {
        "first": "double_conv",
        "down": "maxpool_conv.1.double_conv",
        "up": "conv.double_conv",
        "halves": True,
        "bias": False,
    },
}


def _nested(path: str, module: nn.Module) -> nn.Module:
    """`module` inside modules, so that its keys begin with `path`."""
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, module)
        module = outer
    return module


def _double(inputs: int, between: int, outputs: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, between, 3, padding=1, bias=bias),
        nn.BatchNorm2d(between),
        nn.ReLU(inplace=True),
        nn.Conv2d(between, outputs, 3, padding=1, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Milesial(nn.Module):
    """The U-Net of that project in one of its `LAYOUTS`; `base` filters in the first stage, 64 in the original."""

    def __init__(
        self, channels: int, classes: int, *, base: int = 8, layout: str = "2021-12", bilinear: bool = False
    ) -> None:
        super().__init__()
        names = LAYOUTS[layout]
        narrow = bilinear or not names["halves"]
        widths = [base, 2 * base, 4 * base, 8 * base, (8 if narrow else 16) * base]
        bias = bool(names["bias"])
        self._downs, self._ups, self._doubles = [], [], []
        for level, width in enumerate(widths):
            before = widths[level - 1] if level else channels
            stage = _double(before, width, width, bias)
            path = names["down"] if level else names["first"]
            self.add_module(f"down{level}" if level else "inc", _nested(str(path), stage))
            self._downs.append(stage)
        inputs = widths[4]
        for index in range(1, 5):
            skip = widths[4 - index]
            if bilinear:
                up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            else:
                up = nn.ConvTranspose2d(inputs, inputs // 2 if names["halves"] else inputs, 2, stride=2)
            raised = inputs if bilinear or not names["halves"] else inputs // 2
            outputs = max(skip // 2, base) if narrow else skip
            between = (skip + raised) // 2 if bilinear and names["halves"] else outputs
            stage = _double(skip + raised, between, outputs, bias)
            outer = _nested(str(names["up"]), stage)
            outer.add_module("up", up)
            self.add_module(f"up{index}", outer)
            self._ups.append(up)
            self._doubles.append(stage)
            inputs = outputs
        last = nn.Conv2d(base, classes, 1)
        self.add_module("outc", _nested("conv", last))
        self._last = [last]

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self._downs):
            x = stage(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for index, (up, stage) in enumerate(zip(self._ups, self._doubles, strict=True)):
            skip, x = skips[3 - index], up(x)
            missing = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            left, top = missing[1] // 2, missing[0] // 2
            x = functional.pad(x, [left, missing[1] - left, top, missing[0] - top])
            x = stage(torch.cat([skip, x], 1))
        return self._last[0](x)  # type: ignore[no-any-return]


class Nuclei(nn.Module):
    """UNet2d of the BioImage Model Zoo's example: two convolutions to an activation, bilinear, 1x1 convolutions."""

    def __init__(self, channels: int = 1, classes: int = 1, base: int = 16) -> None:
        super().__init__()
        widths = [channels, base, 2 * base, 4 * base, 8 * base]

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
            )

        def up(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(inputs, inputs // 2, 1))

        self.encoders = nn.ModuleList(block(widths[level], widths[level + 1]) for level in range(3))
        self.base = block(widths[3], widths[4])
        self.upsamplers = nn.ModuleList(up(widths[4 - level]) for level in range(3))
        self.decoders = nn.ModuleList(block(widths[4 - level], widths[3 - level]) for level in range(3))
        self.output = nn.Conv2d(base, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.base(x)
        for up, decoder in zip(self.upsamplers, self.decoders, strict=True):
            x = decoder(torch.cat([skips.pop(), up(x)], 1))
        return self.output(x)  # type: ignore[no-any-return]


def with_random_weights(network: Any, seed: int) -> Any:
    """`network` in evaluation mode, its weights and batch statistics drawn so that values keep their size."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=random)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.2, generator=random)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.2, generator=random)
            module.running_mean.normal_(0, 0.2, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
    return network.eval()
