"""Files of a training run: the network for others to use, and the state for training to go on.

The network is a safetensors file: the tensors of `UNet.state_dict()`, and as metadata
    unet_fast_spec   `UNetSpec.to_dict()` as JSON
    figures          what the network scores on which images, as JSON
    training         the settings it was trained with, as JSON
The state, `NAME.resume.pt`, is `torch.save` of plain containers and tensors and loads with `weights_only=True`.
Both appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from train.model import UNet
from unet_fast.images import LUMA, write_beside
from unet_fast.spec import UNetSpec

#: The layer that sees the image.
FIRST = "encoder0.conv0.weight"
#: Of the weights of two networks that may be averaged.
LEAST_COSINE = 0.5


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this program, or not of the network asked for."""


def save_network(
    path: str | Path,
    spec: UNetSpec,
    weights: dict[str, Tensor],
    *,
    half: bool = False,
    figures: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the network; `half` stores the weights as float16."""
    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    documents = {"unet_fast_spec": spec.to_dict(), "figures": figures or {}, "training": training or {}}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in documents.items()}
    with write_beside(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_network(path: str | Path) -> tuple[UNet, dict[str, Any]]:
    """(the network in float32, {"figures": ..., "training": ...}).  `CheckpointError` names what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if "unet_fast_spec" not in metadata:
        raise CheckpointError(f"{path}: has no metadata entry unet_fast_spec, so it is not a network of this program")
    try:
        spec = UNetSpec.from_dict(json.loads(metadata["unet_fast_spec"]))
        documents = {name: json.loads(metadata.get(name, "{}")) for name in ("figures", "training")}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: broken metadata ({error})") from error
    model = UNet(spec)
    try:
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the tensors do not fit the spec stored beside them: {error}") from error
    return model, documents


def adopt(model: UNet, weights: Mapping[str, Tensor]) -> list[str]:
    """Give `model` those of `weights` whose names and shapes are its own; the names of its tensors left as they were.

    A first layer for one channel fits one for several: it sees the grey of three by the ITU-R 601 weights, the mean of
    two or four.  `CheckpointError` where nothing but a bias fits, which is then another network.
    """
    own = model.state_dict()
    first = weights.get(FIRST)
    channels = own[FIRST].shape[1]
    if first is not None and first.shape[1] == 1 and channels > 1:
        shares = first.new_tensor(LUMA / 1000 if channels == 3 else np.full(channels, 1 / channels))
        weights = {**weights, FIRST: first * shares[None, :, None, None]}
    fitting = {name: tensor for name, tensor in weights.items() if name in own and tensor.shape == own[name].shape}
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise CheckpointError("the network to start from has no layer in common with the one to be trained")
    model.load_state_dict(own | fitting)
    return [name for name in own if name not in fitting]


def average(paths: Sequence[str | Path]) -> tuple[UNetSpec, dict[str, Tensor]]:
    """(spec, weights) of the network whose weights are the mean of those of `paths`, summed in float64.

    One network from runs with several seeds, no slower than each of them (Wortsman et al., ICML 2022, "Model soups"):
    they must have been started from the same trained network.  Statistics of batch normalisation are averaged like
    weights, which is an approximation.  `CheckpointError` where specs differ, or where weights have too little in
    common: three runs of 1000 steps from one network had cosines of 0.95, runs from nothing with different seeds 0.00
    to 0.01.  Runs from nothing with the same seed have much in common too, but no good mean (IoU 0.75 where they have
    0.775 to 0.79).
    """
    if len(paths) < 2:
        raise CheckpointError(f"an average takes two networks or more, got {len(paths)}")
    models = [load_network(path)[0] for path in paths]
    first = models[0]
    for path, model in zip(paths[1:], models[1:], strict=True):
        if model.spec != first.spec:
            raise CheckpointError(f"{path} has another spec than {paths[0]}: {model.spec} and {first.spec}")
        cosine = _cosine(first.state_dict(), model.state_dict())
        if not cosine > LEAST_COSINE:
            raise CheckpointError(
                f"{path} has little in common with {paths[0]} (cosine of the weights {cosine:.2f}, at least "
                f"{LEAST_COSINE} is needed): only networks started from the same one, by --from, have a mean"
            )
    states = [model.state_dict() for model in models]
    return first.spec, {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


def _cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Of all convolution weights."""
    one, other = (torch.cat([t.flatten() for t in weights.values() if t.ndim > 1]).double() for weights in (a, b))
    return float(one @ other / (one.norm() * other.norm()))


def resume_path(path: str | Path) -> Path:
    """Where the training state of the network `path` is kept: `cells.safetensors` -> `cells.resume.pt`."""
    return Path(path).with_suffix(".resume.pt")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write training state of plain containers and tensors."""
    with write_beside(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read back `save_state`; nothing in the file is executed.  `CheckpointError` where there is none to read."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no training state to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no set of exceptions for broken files
        raise CheckpointError(f"{path}: unreadable training state ({error})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path}: not a training state of this program")
    return state
