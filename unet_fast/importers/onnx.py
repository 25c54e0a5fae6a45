"""ONNX files, opset 11 to 21: one node of the file becomes one of the graph, or nothing, or a reason to refuse.

A value of the file is a `Tensor` of the graph (`onnx_layers.py`) or an array of weights or sizes (`onnx_sizes.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .. import reference
from ..graph import Array, Graph, GraphError
from .model import Finished, ImportedModel, Judge, ModelFileError, Options, begin, finish, needs
from .onnx_layers import LAYERS, Call, Tensor, no_layer
from .onnx_sizes import ARITHMETIC, Length, no_arithmetic

OPSETS = range(11, 22)
_LARGEST_LISTED = 8

#: Why a node that people meet cannot be had; what is not here has no counterpart in the engine.
_REASONS = {
    "InstanceNormalization": "its statistics come from each image, so it cannot be folded; train with batch norm",
    "GroupNormalization": "its statistics come from each image, so it cannot be folded; train with batch norm",
    "LayerNormalization": "its statistics come from each image, so it cannot be folded; train with batch norm",
    "ArgMax": "the engine does this itself; export the network up to its logits or probabilities",
    "MatMul": "attention and dense layers are not part of a U-Net of convolutions",
    "Gemm": "attention and dense layers are not part of a U-Net of convolutions",
    "QuantizeLinear": "quantised networks are made by freezing; export the network in floating point",
    "DequantizeLinear": "quantised networks are made by freezing; export the network in floating point",
    "If": "the network must not depend on its input; export it with fixed sizes",
    "Loop": "the network must not depend on its input; export it with fixed sizes",
}
_ACTIVATIONS = "activations are Relu, LeakyRelu, Sigmoid, Tanh and Softmax"
_REASONS |= dict.fromkeys(("Elu", "Selu", "Gelu", "Mish", "HardSwish", "HardSigmoid", "Softplus"), _ACTIVATIONS)


def read_onnx(path: Path, options: Options) -> ImportedModel:
    """The network of an ONNX file; `ModelFileError` names the node that cannot be expressed."""
    onnx = needs("onnx", "reading an ONNX file")
    model = _load(onnx, path)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise ModelFileError(f"ONNX opset {opset}; accepted are {OPSETS[0]} to {OPSETS[-1]}, export it again")
    if model.functions:
        model = importlib.import_module("onnx.inliner").inline_local_functions(model)
    walk = _Walk(onnx, model, opset, options)
    finished = finish(walk.graph, walk.last.name, options)
    height, width = walk.fixed
    size = None if height is None or width is None else (height, width)
    rule = finished.graph.size_rule
    if size is not None and not all(rule.allows(side) for side in size):
        raise ModelFileError(
            f"exported for images of {size[0]} x {size[1]}, where poolings do not divide exactly; "
            f"export it for sides n with {rule}"
        )
    producer = " ".join(filter(None, (model.producer_name, model.producer_version)))
    remarks = list(finished.remarks)
    if size is not None:
        remarks.append(f"exported for images of {size[0]} x {size[1]} only; the engine takes any size")
    return ImportedModel(
        finished.graph,
        f"ONNX, opset {opset}{f', written by {producer}' if producer else ''}",
        tuple(remarks),
        judge=_judge(onnx, model, path, walk, finished, size),
    )


def _load(onnx: Any, path: Path) -> Any:
    """The model with all its weights.  Those kept outside are read from files beside it and from nowhere else."""
    try:
        model = onnx.load(path, load_external_data=False)
        initialisers = list(model.graph.initializer)
        for tensor in initialisers:
            for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
                place = PurePosixPath(entry.value)
                if entry.key == "location" and (len(place.parts) != 1 or place.name == ".."):
                    raise ModelFileError(f"weight {tensor.name!r} lies in {entry.value!r}, outside the model's folder")
        onnx.load_external_data_for_model(model, str(path.parent))
        nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx")]
        if len(nodes) == len(model.graph.node) and not model.functions:
            onnx.checker.check_model(model)
    except ModelFileError:
        raise
    except FileNotFoundError as error:
        raise ModelFileError(f"its weights are in another file, which is missing: {error}") from None
    except Exception as error:  # protobuf, the checker and the loader each raise their own
        raise ModelFileError(f"not a sound ONNX file: {' '.join(str(error).split())[:300]}") from None
    if not model.graph.node:
        raise ModelFileError("not an ONNX file, or one without nodes")
    return model


class _Walk:
    """Goes through the nodes of a file; afterwards `graph` is the network, not finished, and `last` its last tensor.

    fixed  height and width that the file is made for, None where it takes any.
    """

    def __init__(self, onnx: Any, model: Any, opset: int, options: Options) -> None:
        self._onnx, self.opset, self.l2 = onnx, opset, options.l2
        self._values: dict[str, Any] = {"": None}
        for tensor in model.graph.initializer:
            self._values[tensor.name] = self._array(tensor)
        self.output = self._output(model, options.output)
        nodes = self._needed(model)
        self._refuse_unknown(nodes)
        self.input, self.input_axes, channels, self.fixed = self._input(model, nodes)
        sides = [side for side in self.fixed if side is not None]
        self.graph = Graph(channels, tile=options.tile or max(sides, default=256))
        self._values[self.input.name] = Tensor(begin(self.graph, options), self.input_axes)
        for index, node in enumerate(nodes):
            self._visit(node, index)
        last = self._values[self.output]
        if not isinstance(last, Tensor):
            raise ModelFileError(f"output {self.output!r} does not depend on the image")
        self.last = last

    def _array(self, tensor: Any) -> Array:
        array: Array = self._onnx.numpy_helper.to_array(tensor)
        return array

    def _output(self, model: Any, wanted: str | None) -> str:
        names = [output.name for output in model.graph.output]
        if wanted is None and len(names) == 1:
            return str(names[0])
        if wanted not in names:
            raise ModelFileError(f"it has the outputs {', '.join(names)}; say which one to take, got {wanted!r}")
        return str(wanted)

    def _needed(self, model: Any) -> list[Any]:
        """The nodes that the output depends on."""
        needed, nodes = {self.output}, []
        for node in reversed(model.graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _refuse_unknown(self, nodes: Sequence[Any]) -> None:
        known = {*LAYERS, *ARITHMETIC, "Constant"}
        reasons = [
            f"{_label(node)}: {_REASONS.get(node.op_type, 'it has no counterpart in the engine')}"
            for node in nodes
            if node.op_type not in known or node.domain not in ("", "ai.onnx")
        ]
        if reasons:
            more = f"; and {len(reasons) - _LARGEST_LISTED} more" if len(reasons) > _LARGEST_LISTED else ""
            listed = "; ".join(reasons[:_LARGEST_LISTED])
            raise ModelFileError(f"nodes that cannot be imported: {listed}{more}")

    def _input(self, model: Any, nodes: Sequence[Any]) -> tuple[Any, str, int, tuple[int | None, int | None]]:
        """The image: its entry, order of axes, channels, and height and width where they are fixed."""
        read = {name for node in nodes for name in node.input}
        inputs = [entry for entry in model.graph.input if entry.name not in self._values and entry.name in read]
        if len(inputs) != 1:
            raise ModelFileError(f"it must have one input, got {', '.join(entry.name for entry in inputs) or 'none'}")
        dims = [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
        if len(dims) != 4:
            shape = " x ".join(str(dim or "?") for dim in dims)
            raise ModelFileError(
                f"input {inputs[0].name!r} must be a batch of images with 4 axes, got {shape or 'none'}"
            )
        for axes in ("NCHW", "NHWC"):
            channels = dims[axes.index("C")]
            if channels is not None and channels <= 4:
                return inputs[0], axes, channels, (dims[axes.index("H")], dims[axes.index("W")])
        raise ModelFileError(f"input {inputs[0].name!r} must have 1 to 4 channels, got {dims}")

    def _visit(self, node: Any, index: int) -> None:
        attributes = {entry.name: self._onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = [self._values.get(name) for name in node.input]
        try:
            if node.op_type == "Constant":
                value = self._constant(attributes)
            elif any(isinstance(value, Tensor) for value in inputs):
                name = node.name or f"{node.op_type.lower()}_{index}"
                call = Call(name.strip("/"), inputs, attributes, self.graph, self.opset, self._lengths)
                value = LAYERS.get(node.op_type, no_layer)(call)
            else:
                value = ARITHMETIC.get(node.op_type, no_arithmetic)(inputs, attributes)
        except (ModelFileError, GraphError) as error:
            raise ModelFileError(f"{_label(node)}: {error}") from None
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{_label(node)}: inputs or attributes are not as ONNX has them ({error})") from None
        self._values[node.output[0]] = value

    def _constant(self, attributes: Mapping[str, Any]) -> Array:
        (name, value), *_ = attributes.items()
        if name == "value":
            return self._array(value)
        return np.asarray(value)

    def _lengths(self, tensor: Tensor) -> list[Any]:
        """The shape of a tensor: ints, and a `Length` where it depends on the image."""
        shape = self.graph.shapes[tensor.name]
        sides: dict[str, Any] = {"N": 1, "C": shape.channels}
        for axis, size, fixed in zip("HW", shape.sides, self.fixed, strict=True):
            sides[axis] = Length(size) if fixed is None else size.at(fixed)
        return [sides[axis] for axis in tensor.axes]


def _label(node: Any) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


# -- the judge -------------------------------------------------------------------------------------------------------


def _judge(onnx: Any, model: Any, path: Path, walk: _Walk, finished: Finished, size: tuple[int, int] | None) -> Judge:
    """ONNX Runtime where it is installed, else the slow evaluator of the package onnx."""
    runtime: Any = None
    name = f"the reference evaluator of onnx {onnx.__version__}"
    with suppress(ModuleNotFoundError):
        runtime = importlib.import_module("onnxruntime")
        name = f"ONNX Runtime {runtime.__version__}"
    try:
        if runtime is None:
            session = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
        else:
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # each raises its own
        raise ModelFileError(f"{name} refuses it: {' '.join(str(error).split())[:300]}") from None
    element = onnx.helper.tensor_dtype_to_np_dtype(walk.input.type.tensor_type.elem_type)
    last = walk.graph.writer(walk.last.name)
    is_result = last is not None and last.attributes.get("activation") == finished.graph.output

    def run(pixels: Array) -> Array:
        x = reference.normalised(pixels[None].astype(np.float64), finished.given)
        x = x if walk.l2 is None else reference.l2_normalised(x, walk.l2)
        x = x if walk.input_axes == "NHWC" else x.transpose(0, 3, 1, 2)
        (y,) = session.run([walk.output], {walk.input.name: np.ascontiguousarray(x, dtype=element)})
        y = np.asarray(y, np.float64)
        y = y if walk.last.axes == "NHWC" else y.transpose(0, 2, 3, 1)
        return (y if is_result else reference.result(finished.graph, y))[0]

    return Judge(run, name, size)
