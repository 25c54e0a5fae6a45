"""`freeze`: a trained network becomes one engine file.  Needs NumPy and safetensors, no PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy

from . import engine_file, reference
from .errors import UnsupportedError
from .fuse import fuse
from .graph import Array, Graph, from_spec
from .plan import ELEMENT_BYTES, plan
from .quantise import Quantised, agreement, calibration_images, quantise
from .spec import UNetSpec
from .tiling import exact_halo

#: Key under which a checkpoint (a safetensors file) carries its spec, as JSON.
SPEC_KEY = "unet_fast_spec"
#: So many golden pairs, of images as small as the network allows, but not below so many pixels a side.
GOLDEN_PAIRS, GOLDEN_SIDE = 2, 64

#: What can be frozen: a path to a checkpoint, a (spec, weights) pair, a graph, or a PyTorch module with a `spec`.
Model: TypeAlias = Any
Precision: TypeAlias = Literal["float32", "bf16", "fp16", "int8"]


def freeze(
    model: Model,
    path: str | os.PathLike[str],
    *,
    spec: UNetSpec | None = None,
    targets: Sequence[str] = ("cpu",),
    precision: Precision = "fp16",
    calibration: Any = None,
    name: str | None = None,
    threshold: float = 0.5,
    class_names: Sequence[str] = (),
    palette: Sequence[Sequence[int]] = (),
) -> Path:
    """Folds, fuses and plans the network and writes the engine file `path`.  Returns the path.

    model        one of
                 - a path to a safetensors checkpoint (float32, float16 or float64 tensors named as in `spec.py`, the
                   spec as JSON under the metadata key "unet_fast_spec"),
                 - a pair of `UNetSpec` and a mapping of such names to arrays,
                 - a `Graph`,
                 - a PyTorch module with `state_dict()` and, unless `spec` is given, a `spec`.
    spec         the architecture, where the model does not carry it.
    targets      "cpu" (always included: every engine runs without a GPU) and GPU architectures such as "sm_90".
    precision    "float32", "bf16" or "fp16": what the engine aims at where the device can.  "int8": uint8 activations
                 and int8 weights, for the CPU alone; as many ops as the gate of `quantise.py` lets through, the others
                 in bf16 or float32.  `unet-fast inspect` says which, and why.
    calibration  for "int8": a folder of images, an array (N, H, W[, C]), or a sequence of arrays, uint8, uint16 or
                 float32 in [0, 1].  Some dozens of images such as the network will see.
    name         for people; the file's name without its ending by default.
    threshold    a sigmoid's mask is set where probability > threshold; between 0 and 1.
    class_names  one per class, or (); the spec's by default.
    palette      one (red, green, blue) in 0..255 per class, or ().

    Raises `ValueError` that names what is wrong with an argument or a weight (`GraphError` for a network that cannot
    be expressed), `UnsupportedError` for a target that this installation cannot compile for, and `OSError` where a
    file cannot be read or written; then no file is left behind.
    """
    path = Path(path)
    if precision not in ELEMENT_BYTES:
        raise ValueError(f"precision must be one of {', '.join(ELEMENT_BYTES)}, got {precision!r}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold!r}")
    graph = load_graph(model, spec)
    _check_finite(graph)
    fused = fuse(graph)
    quantised: Quantised | None = None
    if precision == "int8":
        if any(target != "cpu" for target in targets):
            raise UnsupportedError(f'precision "int8" runs on the CPU alone, got targets {tuple(targets)}')
        images = calibration_images(calibration, graph.channels)
        output = _output(graph, threshold, class_names, palette)
        quantised = quantise(fused, images, _Comparison(graph, fused, output, images))
    elif calibration is not None:
        raise ValueError(f'calibration is for precision "int8", got precision {precision!r}')
    final = quantised.graph if quantised else fused
    weights = _weights(final)
    document = describe(graph, final)
    document |= {
        "name": default_name(path) if name is None else name,
        "precision": precision,
        "output": _output(graph, threshold, class_names, palette),
    }
    golden = _golden(graph)
    document["golden"] = [
        {"image": f"golden.{index}.image", "probability": f"golden.{index}.probability"}
        for index in range(GOLDEN_PAIRS)
    ]
    document["accuracy"] = _accuracy(fused, final, golden, precision)
    if quantised:
        document["quantisation"] = quantised.to_dict()
    shapes = {name: array.shape for name, array in weights.items()}
    document["kernels"], kernels = _compile(document, shapes, targets, precision)
    return engine_file.write(path, document, weights | golden | kernels)


def default_name(path: Path) -> str:
    """What an engine is called where nothing is said: its file without the ending, in letters that JSON takes."""
    return os.fsencode(path.stem).decode("utf-8", "replace")


def load_graph(model: Model, spec: UNetSpec | None = None) -> Graph:
    """The graph of anything that `freeze` accepts."""
    if isinstance(model, Graph):
        if not model.output:
            raise ValueError("model: the graph has no output yet; end it with Graph.finish")
        return model
    if isinstance(model, str | os.PathLike):
        found, weights = read_checkpoint(model)
    elif isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], Mapping):
        found, weights = model
    elif callable(getattr(model, "state_dict", None)):
        found, weights = getattr(model, "spec", None), model.state_dict()
    else:
        raise ValueError(
            "model must be a checkpoint's path, a (UNetSpec, weights) pair, a Graph or a PyTorch module, "
            f"got {type(model).__name__}"
        )
    spec = spec or found
    if spec is None and isinstance(model, str | os.PathLike):
        raise ValueError(
            f"{os.fspath(model)} says nothing of its architecture; pass spec=, or if it is somebody else's network, "
            "see `unet-fast import`"
        )
    if not isinstance(spec, UNetSpec):
        raise ValueError(f"model has no UNetSpec (got {spec!r}); pass spec=")
    return from_spec(spec, {key: _array(value) for key, value in weights.items()})


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[UNetSpec | None, dict[str, Array]]:
    """Spec (None if the file carries none) and weights of a safetensors file; `ValueError` where it is not one."""
    data = Path(path).read_bytes()
    try:
        weights = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        text = metadata.get(SPEC_KEY)
        spec = None if text is None else UNetSpec.from_dict(json.loads(text))
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)}: not a checkpoint that can be frozen: {error}") from None
    if engine_file.METADATA_KEY in metadata:
        raise ValueError(
            f"{os.fspath(path)} is an engine file already; what can be frozen is the checkpoint it came from"
        )
    return spec, weights


def _array(value: Any) -> Array:
    """A NumPy array from an array or a PyTorch tensor of any device and float type."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value)


def _check_finite(graph: Graph) -> None:
    for node in graph.nodes:
        for name, array in node.tensors.items():
            bad = array.size - int(np.isfinite(array).sum())
            if bad:
                raise ValueError(f"weight {node.name}.{name} has {bad} NaN or infinite values of {array.size}")


def _weights(fused: Graph) -> dict[str, Array]:
    """Every tensor of the fused graph under its name in the file, as float32 or int8."""
    tensors: dict[str, Array] = {}
    for node in fused.nodes:
        for name, array in node.tensors.items():
            if array.dtype == np.int8:
                tensors[f"{node.name}.{name}"] = array
                continue
            with np.errstate(over="ignore"):
                tensors[f"{node.name}.{name}"] = array.astype(np.float32)
            if not np.isfinite(tensors[f"{node.name}.{name}"]).all():
                raise ValueError(f"{node.name}.{name}: folding gives values beyond float32; the weights are too large")
    return tensors


def describe(graph: Graph, fused: Graph) -> dict[str, Any]:
    """The part of the document that follows from the network alone: `graph` as it was built, `fused` as it runs."""
    rule = graph.size_rule
    planned = plan(fused)
    return {
        "format_version": engine_file.FORMAT_VERSION,
        "producer": f"unet_fast {_version()}",
        "spec": None if graph.spec is None else graph.spec.to_dict(),
        "input": {"channels": graph.channels, "normalisation": graph.normalisation.to_dict(graph.channels)},
        "size": rule._asdict(),
        "tile": rule.at_least(graph.tile),
        "margin": graph.margin,
        "halo": exact_halo(graph),
        "buffers": [
            {
                "name": buffer.name,
                "channels": buffer.shape.channels,
                "height": list(buffer.shape.height),
                "width": list(buffer.shape.width),
                "halo": buffer.halo,
                "slot": buffer.slot,
            }
            for buffer in planned.buffers
        ],
        "slots": planned.slots,
        "ops": [engine_file.op_document(node) for node in fused.nodes],
    }


def _version() -> str:
    """This package's version; "0" in a source tree that was never installed."""
    try:
        return importlib.metadata.version("unet_fast")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _output(
    graph: Graph, threshold: float, class_names: Sequence[str], palette: Sequence[Sequence[int]]
) -> dict[str, Any]:
    classes = graph.result.channels
    names = list(class_names) or (list(graph.spec.class_names) if graph.spec else [])
    if names and (len(names) != classes or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"class_names must be {classes} strings or (), got {names!r}")
    colours = [[int(part) for part in colour] for colour in palette]
    if colours and (
        len(colours) != classes or any(len(colour) != 3 or min(colour) < 0 or max(colour) > 255 for colour in colours)
    ):
        raise ValueError(f"palette must be {classes} times (red, green, blue) in 0..255 or (), got {colours!r}")
    return {
        "kind": graph.output,
        "channels": classes,
        "threshold": float(threshold),
        "class_names": names,
        "palette": colours,
    }


def golden_image(height: int, width: int, channels: int, seed: int) -> Array:
    """A smooth random picture (H, W, C) uint8 with a few bright filaments: the same on every machine."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    layers = []
    for _ in range(channels):
        picture = np.zeros((height, width))
        for _ in range(4):
            fy, fx, phase, weight = random.uniform([0.5, 0.5, 0, 0.2], [3, 3, 2 * np.pi, 1])
            picture += weight * np.sin(2 * np.pi * (fy * rows + fx * columns) + phase)
        for _ in range(3):
            y, x, angle, bend = random.uniform([0, 0, 0, -3], [1, 1, np.pi, 3])
            along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
            across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle) + bend * along**2
            picture += 3 * np.exp(-((across / 0.03) ** 2) - (along / 0.4) ** 2)
        picture += random.normal(0, 0.15, picture.shape)
        layers.append((picture - picture.min()) / np.ptp(picture))
    return np.round(255 * np.stack(layers, axis=-1)).astype(np.uint8)


def _golden(graph: Graph) -> dict[str, Array]:
    """Images and what the graph makes of them in float64, before any rewrite, under their names in the file."""
    side = graph.size_rule.at_least(GOLDEN_SIDE)
    tensors: dict[str, Array] = {}
    for index in range(GOLDEN_PAIRS):
        image = golden_image(side, side, graph.channels, seed=index)
        logits = reference.logits(graph, reference.to_unit(image[None]))
        if not np.isfinite(logits).all():
            raise ValueError("model: the network gives NaN or infinite values for an ordinary image")
        tensors[f"golden.{index}.image"] = image
        tensors[f"golden.{index}.probability"] = reference.result(graph, logits)[0].astype(np.float32)
    return tensors


def relative_error(values: Array, truth: Array) -> float:
    """||values - truth|| / ||truth|| in float64; NaN where either has one."""
    difference = np.linalg.norm(values.astype(np.float64) - truth.astype(np.float64))
    return float(difference / max(np.linalg.norm(truth.astype(np.float64)), np.finfo(np.float64).tiny))


class _Comparison:
    """How well a quantised graph agrees with the float32 network, both run by the CPU runtime on whole images."""

    def __init__(self, graph: Graph, fused: Graph, output: dict[str, Any], images: Sequence[Array]) -> None:
        self._graph, self._output, self._images = graph, output, images
        self._truths = self._results(fused, "float32")

    def __call__(self, quantised: Graph) -> float:
        return agreement(self._results(quantised, "int8"), self._truths, self._graph.output)

    def _results(self, fused: Graph, precision: Precision) -> list[Array]:
        from .engine import Engine  # which needs the native module; freezing in other precisions does not

        document = describe(self._graph, fused) | {
            "name": "calibration",
            "precision": precision,
            "output": self._output,
            "golden": [],
            "accuracy": {},
            "kernels": [],
        }
        engine = Engine(engine_file.serialise(document, _weights(fused)), device="cpu")
        has_mask = self._graph.output == "softmax" or (self._graph.output == "sigmoid" and engine.classes == 1)
        return [engine.segment(image) if has_mask else engine.probability(image) for image in self._images]


def _accuracy(fused: Graph, final: Graph, golden: Mapping[str, Array], precision: Precision) -> dict[str, float]:
    """Largest relative error on the golden pairs: of the fused ops in float32, and of the final ones in `precision`.

    `ValueError` where values overflow in that precision.
    """
    accuracy: dict[str, float] = {}
    for storage in dict.fromkeys(("float32", precision)):
        graph = fused if storage == "float32" else final
        weights = _weights(graph)
        rounded = graph.with_nodes(
            replace(node, tensors={name: weights[f"{node.name}.{name}"] for name in node.tensors})
            for node in graph.nodes
        )
        errors = []
        for index in range(GOLDEN_PAIRS):
            pixels = reference.to_unit(golden[f"golden.{index}.image"][None])
            logits = reference.logits(rounded, pixels, storage="float32" if storage == "int8" else storage)
            if not np.isfinite(logits).all():
                raise ValueError(
                    f'precision "{storage}" is too narrow: values of this network overflow; use "bf16" or "float32"'
                )
            errors.append(relative_error(reference.result(graph, logits)[0], golden[f"golden.{index}.probability"]))
        accuracy[storage] = float(f"{max(errors):.1e}")
    return accuracy


def _compile(
    document: dict[str, Any], shapes: Mapping[str, Sequence[int]], targets: Sequence[str], precision: Precision
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """GPU kernels of the document for the targets other than "cpu": their entries and tensors of code."""
    if isinstance(targets, str):
        raise ValueError(f"targets must be a sequence of names such as ('cpu', 'sm_90'), got {targets!r}")
    gpus = [target for target in targets if target != "cpu"]
    if not gpus:
        return [], {}
    try:
        from .kernels import aot
    except ImportError as error:
        raise UnsupportedError(
            f"targets: cannot compile for {', '.join(gpus)} here ({error}); install triton, or freeze for ('cpu',)"
        ) from None
    return aot.compile_plan(document, shapes, gpus, precision)
