"""Writes the files of tests/importers/fixtures with the frameworks that they come from.

    python -m tests.importers.make_fixtures keras tests/importers/fixtures      # Keras 3
    python -m tests.importers.make_fixtures tf_keras tests/importers/fixtures   # Keras 2
    python -m tests.importers.make_fixtures torch tests/importers/fixtures      # PyTorch checkpoints and ONNX

Beside `NAME.<ending>` stands `NAME.npz`: `image` (N, H, W, C), what the framework was given, and `result` (N, h, w, K),
what it made of it.  The tests also write fresh files with whatever framework is installed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32


def _save_pair(path: Path, image: np.ndarray[Any, Any], result: np.ndarray[Any, Any]) -> None:
    np.savez_compressed(path, image=image.astype(np.float32), result=result.astype(np.float32))


def _image(seed: int, channels: int, white: float = 1.0, side: int = SIDE) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, side, side, channels))
    return (pixels * (white / 255)).astype(np.float32)


# -- Keras -----------------------------------------------------------------------------------------------------------


def keras_networks() -> dict[str, Callable[[Any], Any]]:
    """Name -> function of the keras module that makes the model."""
    from tests.importers.keras_networks import mixed_unet, nearest_unet, simple_unet

    return {
        "simple": lambda keras: simple_unet(keras, base=1),
        "multi": lambda keras: simple_unet(keras, channels=3, classes=4, depth=2),
        "nearest": lambda keras: nearest_unet(keras, depth=2),
        "mixed": mixed_unet,
    }


def make_keras(folder: Path, name: str, seed: int, endings: tuple[str, ...]) -> None:
    """Writes the network called `name` with Keras 3 in the files that `endings` name."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    _make_keras(importlib.import_module("keras"), folder, "keras3", name, seed, endings)


def make_tf_keras(folder: Path, name: str, seed: int, endings: tuple[str, ...]) -> None:
    """The same with Keras 2; "_weights.h5" is its own form of weight file."""
    _make_keras(importlib.import_module("tf_keras"), folder, "keras2", name, seed, endings)


def _make_keras(keras: Any, folder: Path, version: str, name: str, seed: int, endings: tuple[str, ...]) -> None:
    from tests.importers.keras_networks import randomise

    model = keras_networks()[name](keras)
    randomise(model, seed)
    image = _image(seed, model.input_shape[-1], white=255.0 if name == "mixed" else 1.0)
    path = folder / f"{version}_{name}"
    _save_pair(path.with_suffix(".npz"), image, np.asarray(model.predict(image, verbose=0)))
    for ending in endings:
        save = model.save_weights if "weights" in ending else model.save
        save(f"{path}{ending}")


# -- PyTorch ---------------------------------------------------------------------------------------------------------


def make_checkpoint(
    folder: Path,
    name: str,
    seed: int,
    *,
    layout: str,
    bilinear: bool = False,
    classes: int = 1,
    base: int = 2,
    **changes: Any,
) -> Path:
    """A checkpoint of a network like milesial/Pytorch-UNet.

    changes: `prefix` of the names, `mask_values`, `nested` under a key, `legacy` format of torch.save.
    """
    import torch

    from tests.importers.torch_networks import Milesial, with_random_weights

    network = with_random_weights(Milesial(3, classes, base=base, layout=layout, bilinear=bilinear), seed)
    state: dict[str, Any] = {changes.get("prefix", "") + key: value for key, value in network.state_dict().items()}
    if "mask_values" in changes:
        state["mask_values"] = changes["mask_values"]
    if "nested" in changes:
        state = {"epoch": 3, changes["nested"]: state}
    path = folder / f"{name}.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not changes.get("legacy", False))
    image = _image(seed, 3)
    with torch.no_grad():
        logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        result = logits.sigmoid() if classes == 1 else logits.softmax(1)
    _save_pair(path.with_suffix(".npz"), image, result.numpy().transpose(0, 2, 3, 1))
    return path


def torch_network(name: str) -> Any:
    """A network by the name that ONNX files are called by."""
    from tests.importers.torch_networks import Milesial, Nuclei

    if name == "monai":
        from monai.networks.nets import BasicUNet

        return BasicUNet(2, 1, 2, features=(2, 2, 4, 4, 8, 2), norm="batch", dropout=0.1)
    if name == "nuclei":
        return Nuclei(base=2)
    return Milesial(3, 2, base=1, bilinear=name == "bilinear")


def make_onnx(folder: Path, name: str, seed: int, *, opset: int, dynamo: bool, dynamic: bool, side: int = SIDE) -> Path:
    """An ONNX file by one of the two exporters of PyTorch, with the sizes of the image fixed or not."""
    import torch

    from tests.importers.torch_networks import with_random_weights

    network = with_random_weights(torch_network(name), seed)
    channels = next(network.parameters()).shape[1]
    image = _image(seed, channels, side=side)
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    path = folder / f"{name}.onnx"
    names = {"input_names": ["image"], "output_names": ["logits"]}
    if dynamo:
        axes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        shapes = (axes,) if dynamic else None
        torch.onnx.export(
            network, (x,), path, opset_version=opset, dynamic_shapes=shapes, external_data=False, verbose=False, **names
        )
    else:
        axes_names = {"image": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
        torch.onnx.export(network, (x,), path, opset_version=opset, dynamo=False, dynamic_axes=axes_names, **names)
    with torch.no_grad():
        logits = network(x).double()
        result = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    _save_pair(path.with_suffix(".npz"), image, result.numpy().transpose(0, 2, 3, 1))
    return path


# -- all of them -----------------------------------------------------------------------------------------------------


def main(framework: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if framework == "keras":
        make_keras(folder, "multi", 2, (".weights.h5",))
        make_keras(folder, "nearest", 3, (".keras",))
        make_keras(folder, "mixed", 4, (".h5",))
    elif framework == "tf_keras":
        make_tf_keras(folder, "simple", 5, ("_weights.h5",))
        make_tf_keras(folder, "nearest", 7, (".h5",))
        make_tf_keras(folder, "mixed", 8, (".h5",))
    elif framework == "torch":
        make_onnx(folder, "transposed", 9, opset=11, dynamo=False, dynamic=True)
        make_onnx(folder, "bilinear", 10, opset=16, dynamo=False, dynamic=True)
        make_onnx(folder, "nuclei", 11, opset=17, dynamo=False, dynamic=False)
        make_onnx(folder, "monai", 12, opset=18, dynamo=True, dynamic=True)
        make_checkpoint(folder, "until_2019", 13, layout="2019-05", base=1, legacy=True)
        make_checkpoint(folder, "carvana", 14, layout="2021-12", base=1, classes=2, mask_values=[0, 255])
    else:
        raise SystemExit(f"keras, tf_keras or torch, got {framework!r}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
