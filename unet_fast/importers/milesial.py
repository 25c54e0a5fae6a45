"""Checkpoints of milesial/Pytorch-UNet: keys and shapes of a state dict tell which of its networks it is.

Its four layouts differ in names, in the channels behind the up-sampling and in whether convolutions have a bias:

    until 2019-10   inc.conv.conv.0      down1.mpconv.1.conv.0               up1.up   up1.conv.conv.0
    from 2019-10    inc.double_conv.0    down1.maxpool_conv.1.double_conv.0  up1.up   up1.conv.double_conv.0
    from 2020-03    the same; the transposed convolution halves the channels, bilinear networks are narrower
    from 2021-12    the same; convolutions have no bias

In all of them a stage is (convolution 3x3, batch norm, ReLU) twice, the skip stands first in the concat, and a network
without `up1.up.weight` upsamples bilinearly with align_corners.  Pixels are given divided by 255.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..engine_file import METADATA_KEY
from ..freeze import read_checkpoint
from ..graph import Array, Graph, canonical, canonical_transposed, from_spec
from .model import ImportedModel, ModelFileError, Options, begin, finish, needs

#: Under which a training script may have put the state dict.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
#: Old names of the stages and what they became.
_RENAMED = (
    (re.compile(r"^inc\.conv\.conv\."), "inc.double_conv."),
    (re.compile(r"^(down\d+)\.mpconv\.1\.conv\."), r"\1.maxpool_conv.1.double_conv."),
    (re.compile(r"^(up\d+)\.conv\.conv\."), r"\1.conv.double_conv."),
)
_EXPECTED = (
    "a state dict of milesial/Pytorch-UNet has inc.double_conv.0.weight, down1..., up1... and outc.conv.weight; "
    "other networks come in through ONNX (torch.onnx.export)"
)
_LARGEST_LISTED = 4


def read_torch(path: Path, options: Options) -> ImportedModel:
    """The network of a file of `torch.save`; nothing that its pickle asks for is executed."""
    return from_state_dict(load_state_dict(path), options)


def read_safetensors(path: Path, options: Options) -> ImportedModel:
    """The same from a safetensors file, which may also be a checkpoint of unet_fast itself."""
    with path.open("rb") as file:
        start = file.read(64)
    if f'"{METADATA_KEY}":'.encode() in start:
        raise ModelFileError("it is an engine file already")
    spec, weights = read_checkpoint(path)
    if spec is not None:
        return ImportedModel(from_spec(spec, weights), "a checkpoint of unet_fast, which `unet-fast freeze` takes too")
    return from_state_dict(weights, options)


def load_state_dict(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, by name: tensors, numbers, strings and lists of them, and no other object."""
    torch = needs("torch", "reading a PyTorch file", "unet_fast[train]")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"of {wanted[1]} " if wanted else ""
        raise ModelFileError(
            f"a pickle with Python objects {what}besides tensors, which unet_fast never executes; where you trust the "
            "file, load it in PyTorch and save model.state_dict()"
        ) from None
    except Exception as error:  # a damaged archive fails in many ways
        raise ModelFileError(f"not a file that PyTorch can read: {' '.join(str(error).split())[:200]}") from None
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ModelFileError(f"it must hold a state dict, names and tensors, got {type(found).__name__}; {_EXPECTED}")
    return dict(found)


def from_state_dict(state: Mapping[str, Any], options: Options) -> ImportedModel:
    """The network of a state dict in any of the layouts, with or without the prefix "module."."""
    left = {_canonical_name(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    mask_values = left.pop("mask_values", None)
    weights = _Weights(left)
    old_names = any(".mpconv." in name for name in state)
    levels = weights.count("down")
    if "inc.double_conv.0.weight" not in left or levels == 0 or weights.count("up") != levels:
        names = sorted(map(str, state))
        listed = ", ".join(names[:_LARGEST_LISTED]) + (", ..." if len(names) > _LARGEST_LISTED else "")
        raise ModelFileError(f"a state dict with {listed or 'nothing in it'}; {_EXPECTED}")
    first = weights.peek("inc.double_conv.0.weight")
    if first.ndim != 4:
        raise ModelFileError(f"'inc.double_conv.0.weight' must have 4 axes, got the shape {first.shape}")
    channels = first.shape[1]
    biased = "inc.double_conv.0.bias" in left
    bilinear = "up1.up.weight" not in left

    graph = Graph(channels, tile=options.tile or 256)
    x, skips = begin(graph, options), []
    for level in range(levels + 1):
        if level:
            skips.append(x)
            x = graph.pool(f"pool{level}", x)
        prefix = f"down{level}.maxpool_conv.1" if level else "inc"
        x = _double_convolution(graph, weights, f"{prefix}.double_conv", f"down{level}" if level else "inc", x)
    for index in range(1, levels + 1):
        name = f"up{index}"
        if bilinear:
            up = graph.upsample(f"{name}.up", x, "bilinear_corners")
        else:
            weight, bias = weights.take(f"{name}.up.weight", 4), weights.take(f"{name}.up.bias", 1)
            up = graph.conv_transpose(f"{name}.up", x, canonical_transposed(weight), bias)
        x = graph.concat(f"{name}.concat", skips.pop(), up)
        x = _double_convolution(graph, weights, f"{name}.conv.double_conv", name, x)
    weight = canonical(weights.take("outc.conv.weight", 4))
    x = graph.conv("outc", x, weight, weights.take("outc.conv.bias", 1))
    weights.finish()
    if bilinear:  # which of the two widths shrank
        is_newer = graph.shapes["up1.conv0"].channels > graph.shapes["up1.conv1"].channels
    else:
        is_newer = graph.shapes["up1.up"].channels < graph.shapes[f"down{levels}.relu1"].channels
    layout = "until 2019-10" if old_names else "from 2020-03" if is_newer else "from 2019-10"
    layout = layout if biased else "from 2021-12"
    finished = finish(graph, x, options)
    classes = finished.graph.result.channels
    kind = "bilinear" if bilinear else "transposed"
    return ImportedModel(
        finished.graph,
        f"a checkpoint of milesial/Pytorch-UNet: {channels} channels, {classes} classes, {kind}, layout {layout}",
        finished.remarks,
        palette=_palette(mask_values, classes),
    )


def _canonical_name(name: str) -> str:
    name = name.removeprefix("module.")
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name


class _Weights:
    """Takes arrays out of a state dict by name; what is left at the end is an error."""

    def __init__(self, left: dict[str, Any]) -> None:
        self._left = left

    def count(self, prefix: str) -> int:
        return len({name.partition(".")[0] for name in self._left if re.match(rf"{prefix}\d+\.", name)})

    def peek(self, name: str) -> Array:
        value = self._left[name]
        if hasattr(value, "detach"):
            value = value.detach().double().numpy()
        if not isinstance(value, np.ndarray):
            raise ModelFileError(f"{name!r} must be a tensor, got {type(value).__name__}")
        return value.astype(np.float64)

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, axes: int) -> Array:
        if name not in self._left:
            raise ModelFileError(f"it lacks {name!r}; {_EXPECTED}")
        array = self.peek(name)
        if array.ndim != axes:
            raise ModelFileError(f"{name!r} must have {axes} axes, got the shape {array.shape}")
        del self._left[name]
        return array

    def finish(self) -> None:
        if self._left:
            names = ", ".join(sorted(self._left)[:_LARGEST_LISTED])
            raise ModelFileError(
                f"it has {len(self._left)} entries with no place in that network: {names}; {_EXPECTED}"
            )


def _double_convolution(graph: Graph, weights: _Weights, prefix: str, name: str, x: str) -> str:
    for number, (conv, norm) in enumerate(((0, 1), (3, 4))):
        weight = canonical(weights.take(f"{prefix}.{conv}.weight", 4))
        bias = weights.take(f"{prefix}.{conv}.bias", 1) if weights.has(f"{prefix}.{conv}.bias") else None
        x = graph.conv(f"{name}.conv{number}", x, weight, bias, (1, 1, 1, 1))
        fields = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (weights.take(f"{prefix}.{norm}.{field}", 1) for field in fields)
        x = graph.batch_norm(f"{name}.norm{number}", x, scale, shift, mean, variance)
        x = graph.activation(f"{name}.relu{number}", x, "relu")
    return x


def _palette(mask_values: Any, classes: int) -> tuple[tuple[int, int, int], ...]:
    """The entry `mask_values`, grey values or colours of the classes in the training masks, as colours.

    Values that are the numbers of the classes are no colours: the engine's masks have them as they are.
    """
    if classes == 1 and isinstance(mask_values, list) and len(mask_values) == 2:
        mask_values = mask_values[1:]  # background and foreground
    if not isinstance(mask_values, list) or len(mask_values) != classes:
        return ()
    if mask_values in (list(range(classes)), [1]):
        return ()
    colours = [tuple(value) if isinstance(value, list) else (value,) * 3 for value in mask_values]
    if not all(len(colour) == 3 and all(part in range(256) for part in colour) for colour in colours):
        return ()
    return tuple((int(r), int(g), int(b)) for r, g, b in colours)
