"""Other people's networks become engine files.

    report = unet_fast.importers.import_model("model.onnx", "cells.unet")
    print(report)

    model = unet_fast.importers.read_model("carvana.pth")     # the graph alone
    unet_fast.freeze(model.graph, "cells.unet")

ONNX, PyTorch checkpoints of milesial/Pytorch-UNet, Keras (HDF5 and .keras), and packages of the BioImage Model Zoo;
`docs/importing.md` says what of each.  Nothing of a file is ever executed: no pickle, no Lambda, no TorchScript.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..freeze import Precision
from ..graph import GraphError
from .check import TOLERANCE, ImportReport, freeze_checked
from .model import ImportedModel, Judge, ModelFileError, Options, PublishedPair
from .sources import Kind, recognise

__all__ = [
    "ImportReport",
    "ImportedModel",
    "Judge",
    "ModelFileError",
    "Options",
    "PublishedPair",
    "import_model",
    "read_model",
    "recognise",
]


def import_model(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    options: Options | None = None,
    *,
    targets: Sequence[str] = ("cpu",),
    precision: Precision = "fp16",
    name: str | None = None,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
) -> ImportReport:
    """Freezes the network of `source` into the engine file `path`, once the framework it came from agrees.

    The engine in float32 is compared with the test images that the source holds, and with ONNX Runtime (else the
    reference evaluator of the package onnx) for ONNX.  A file of weights alone has no network to run; there the
    engine is compared with the network as it was read.

    source     see `read_model`.
    options    what the file does not say about itself: normalisation, result, ...
    targets, precision, name
               as in `unet_fast.freeze`; for "int8" freeze `read_model(source).graph`.
    threshold  of a sigmoid's mask; None: the source's, else 0.5.
    tolerance  largest relative error ||engine - framework|| / ||framework||.

    `ModelFileError` where the source is not what it claims, holds what the engine cannot express, or disagrees with
    the engine; `ModuleNotFoundError` where a package is missing that reads it; and what `freeze` raises.  Then no
    file is written.
    """
    if precision == "int8":
        raise ValueError('precision "int8" needs calibration images; freeze read_model(source).graph with them')

    def read() -> ImportedModel:
        return read_model(source, options)

    return freeze_checked(
        read, path, targets=targets, precision=precision, name=name, threshold=threshold, tolerance=tolerance
    )


def read_model(source: str | os.PathLike[str], options: Options | None = None) -> ImportedModel:
    """The network of somebody else's file, whose kind is told by its contents.

    source   an ONNX file; a PyTorch checkpoint (state dict) of milesial/Pytorch-UNet; a Keras model or its weights
             (.h5, .hdf5, .keras, .weights.h5); a package of the BioImage Model Zoo (.zip, or folder with rdf.yaml).

    Raises as `import_model`.
    """
    kind, path = recognise(source)
    try:
        return _READERS[kind](path, options or Options())
    except (ModelFileError, GraphError) as error:
        raise ModelFileError(f"{os.fspath(source)}: {error}") from None
    except _MALFORMED as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelFileError(f"{os.fspath(source)}: a description that is not as its format has it ({said})") from error


def _onnx(path: Path, options: Options) -> ImportedModel:
    from .onnx import read_onnx

    return read_onnx(path, options)


def _keras(path: Path, options: Options) -> ImportedModel:
    from .keras import read_keras

    return read_keras(path, options)


def _torch(path: Path, options: Options) -> ImportedModel:
    from .milesial import read_torch

    return read_torch(path, options)


def _safetensors(path: Path, options: Options) -> ImportedModel:
    from .milesial import read_safetensors

    return read_safetensors(path, options)


def _bioimage(path: Path, options: Options) -> ImportedModel:
    from .bioimage import read_package

    return read_package(path, options)


#: What the readers run into where a value of a description has another type or range than its format says.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_READERS: dict[Kind, Callable[[Path, Options], ImportedModel]] = {
    "onnx": _onnx,
    "hdf5": _keras,
    "keras": _keras,
    "torch": _torch,
    "safetensors": _safetensors,
    "bioimage": _bioimage,
}
