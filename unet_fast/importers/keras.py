"""Keras files: whole models (.h5 of Keras 2 and 3, .keras) and weight files (.h5, .weights.h5).

A whole model describes its layers in JSON; of a weight file the convolutions, in the order in which Keras loads them,
have to fit one of the two networks of the tutorials.  `keras_layers.py` turns layers into the graph.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..graph import Array
from .keras_layers import LAYERS, Layer, build
from .model import ImportedModel, ModelFileError, Options, finish, needs

_KNOWN_NETWORKS = (
    "without the layers themselves two networks are known: the simple U-Net (19 convolutions and 4 transposed ones at "
    "4 poolings) and the one with nearest upsampling (24 convolutions); of another one save the whole model"
)


def read_keras(path: Path, options: Options) -> ImportedModel:
    """The network of an HDF5 or .keras file.  `Lambda` layers hold Python code, which is never run."""
    h5py = needs("h5py", "reading a Keras file")
    try:
        config, stored, what = _read(h5py, path)
    except ModelFileError:
        raise
    except Exception as error:  # h5py, zipfile, zlib and json each raise their own
        raise ModelFileError(f"not a sound Keras file: {' '.join(str(error).split())[:200]}") from None
    if config is None:
        layers, weights, output, what = _known_network(stored)
    else:
        layers, output = _layers(config, options)
        weights = stored.of(layers)
    graph, last = build(layers, weights, output, options)
    finished = finish(graph, last, options)
    return ImportedModel(finished.graph, what, finished.remarks)


def _read(h5py: Any, path: Path) -> tuple[Mapping[str, Any] | None, _Stored, str]:
    """The description of the model, None in a file of weights alone; its arrays; and what it is."""
    config: Mapping[str, Any] | None = None
    source: Any = path
    what = "weights of Keras"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config, source = json.loads(archive.read("config.json")), io.BytesIO(archive.read("model.weights.h5"))
        what = "a Keras model (.keras)"
    with h5py.File(source, "r") as file:
        if config is None and "model_config" in file.attrs:
            config = json.loads(_text(file.attrs["model_config"]))
            what = f"a Keras model (HDF5, Keras {_text(file.attrs.get('keras_version', b'?'))})"
        return config, _stored_weights(file), what


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- weights ---------------------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """Arrays by the name of their group.  `by_kind`: named after kinds of layer, as in Keras 3, not after layers."""

    groups: dict[str, list[Array]]
    by_kind: bool

    def of(self, layers: Sequence[Layer]) -> dict[str, list[Array]]:
        """Arrays by the name of the layer."""
        if not self.by_kind:
            return self.groups
        counts: Counter[str] = Counter()
        weights = {}
        for layer in layers:
            kind = _snake_case(layer.kind)
            group = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            weights[layer.name] = self.groups.get(group, [])
        return weights


def _snake_case(kind: str) -> str:
    """As Keras 3 names groups: Conv2DTranspose is conv2d_transpose, LeakyReLU is leaky_re_lu."""
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def _stored_weights(file: Any) -> _Stored:
    """Every array of the file, in the order of the layers as far as the file tells it."""
    for name in ("layers", "_layer_checkpoint_dependencies"):
        if name in file:
            groups = sorted(
                file[name], key=lambda group: [int(part) if part.isdigit() else 0 for part in group.split("_")]
            )
            return _Stored({group: _variables(file[name][group]) for group in groups}, by_kind=True)
    root = file.get("model_weights", file)
    names = list(_names(root, "layer_names"))
    if not names:
        found = ", ".join(list(file)[:4]) or "nothing"
        raise ModelFileError(f"an HDF5 file with {found}, but no layers of Keras")
    return _Stored(
        {name: [_array(root[name][key]) for key in _names(root[name], "weight_names")] for name in names}, False
    )


def _variables(group: Any) -> list[Array]:
    variables = group.get("vars", {})
    return [_array(variables[name]) for name in sorted(variables, key=int)]


def _array(dataset: Any) -> Array:
    return np.asarray(dataset[()], np.float64)


def _names(group: Any, attribute: str) -> Iterator[str]:
    """A list of names; a long one is cut into attributes with numbers."""
    chunks = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(chunks)}" in group.attrs:
        chunks.append(f"{attribute}{len(chunks)}")
    for chunk in chunks:
        yield from map(_text, group.attrs[chunk])


# -- layers ----------------------------------------------------------------------------------------------------------


def _layers(config: Mapping[str, Any], options: Options) -> tuple[list[Layer], str]:
    """The layers of a model's description, and the name of the one that gives its output."""
    kind, model = config.get("class_name"), config.get("config")
    if kind not in ("Functional", "Model") or not isinstance(model, Mapping) or "layers" not in model:
        raise ModelFileError(f"a Keras model of the kind {kind}; a U-Net is a functional model (keras.Model)")
    try:
        layers = [
            Layer(entry["config"]["name"], entry["class_name"], entry["config"], tuple(_inputs(entry)))
            for entry in model["layers"]
        ]
        outputs = list(_histories(model["output_layers"]))
    except (KeyError, TypeError, IndexError) as error:
        raise ModelFileError(f"the description of its layers is not as Keras writes it ({error!r})") from None
    unknown = [f"{layer.name!r} ({layer.kind})" for layer in layers if layer.kind not in LAYERS]
    if unknown:
        raise ModelFileError(f"layers that cannot be imported: {', '.join(unknown)}; known are {', '.join(LAYERS)}")
    if len(outputs) != 1 and options.output not in outputs:
        raise ModelFileError(f"it has the outputs {', '.join(outputs)}; say which one to take")
    return layers, options.output if options.output in outputs else outputs[0]


def _inputs(entry: Mapping[str, Any]) -> list[str]:
    """The layers that a layer reads."""
    nodes = entry["inbound_nodes"]
    if len(nodes) > 1:
        raise ModelFileError(f"layer {entry['config']['name']!r} is used {len(nodes)} times; once is possible")
    return list(_histories(nodes))


def _histories(value: Any) -> Iterator[str]:
    """Names in a nest of ["name", node, tensor, ...] (Keras 2) or {..., "keras_history": ["name", node, tensor]}."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "keras_history":
                yield str(inner[0])
            elif isinstance(inner, list | Mapping):
                yield from _histories(inner)
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            yield value[0]
        else:
            for inner in value:
                yield from _histories(inner)


# -- weights alone ---------------------------------------------------------------------------------------------------


def _known_network(stored: _Stored) -> tuple[list[Layer], dict[str, list[Array]], str, str]:
    """Layers, weights and output of the network of the tutorials that the convolutions of a weight file make."""
    convolutions: list[list[Array]] = []
    transposed: list[list[Array]] = []
    for name, arrays in stored.groups.items():
        if not arrays:
            continue
        if len(arrays) != 2 or arrays[0].ndim != 4 or arrays[1].ndim != 1:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ModelFileError(f"weights of {name!r} with the shapes {shapes}; {_KNOWN_NETWORKS}")
        # Kernels are (ky, kx, in, out), of a transposed convolution (ky, kx, out, in); the bias has `out` numbers.
        kernel, bias = arrays
        is_transposed = kernel.shape[2] == len(bias) != kernel.shape[3]
        (transposed if is_transposed else convolutions).append(arrays)
    depth = len(transposed)
    if depth and len(convolutions) == 4 * depth + 3:
        what = "weights of the simple U-Net of the Keras tutorials"
    elif not depth and len(convolutions) % 5 == 4 and len(convolutions) > 4:
        depth = len(convolutions) // 5
        what = "weights of the Keras U-Net with nearest upsampling"
    else:
        raise ModelFileError(
            f"weights of {len(convolutions)} convolutions and {depth} transposed ones; {_KNOWN_NETWORKS}"
        )
    network = _Network(convolutions, transposed)
    return network.layers, network.weights, network.make(depth), what


class _Network:
    """Writes the layers of the tutorials' networks, giving them the weights of a file in their order."""

    def __init__(self, convolutions: list[list[Array]], transposed: list[list[Array]]) -> None:
        self.layers: list[Layer] = []
        self.weights: dict[str, list[Array]] = {}
        self._convolutions, self._transposed = iter(convolutions), iter(transposed)
        self._has_transposed = bool(transposed)
        self._channels = convolutions[0][0].shape[2]

    def _add(self, kind: str, *inputs: str, arrays: list[Array] | None = None, **config: Any) -> str:
        name = f"{_snake_case(kind)}_{len(self.layers)}"
        self.layers.append(Layer(name, kind, config, inputs))
        self.weights[name] = arrays or []
        return name

    def _conv(self, x: str, activation: str = "relu") -> str:
        arrays = next(self._convolutions)
        return self._add("Conv2D", x, arrays=arrays, padding="same", activation=activation)

    def _up(self, x: str) -> str:
        if self._has_transposed:
            return self._add("Conv2DTranspose", x, arrays=next(self._transposed), padding="same", strides=[2, 2])
        return self._conv(self._add("UpSampling2D", x, size=[2, 2]))

    def make(self, depth: int) -> str:
        """Adds the layers; the name of the last."""
        x, skips = self._add("InputLayer", batch_shape=[None, None, None, self._channels]), []
        for level in range(depth + 1):
            x = self._conv(self._conv(x))
            if level < depth:
                skips.append(x)
                x = self._add("MaxPooling2D", x, pool_size=[2, 2])
        for skip in reversed(skips):
            up = self._up(x)
            x = self._add("Concatenate", *((up, skip) if self._has_transposed else (skip, up)))
            x = self._conv(self._conv(x))
        if not self._has_transposed:
            x = self._conv(x)
        arrays = next(self._convolutions)
        activation = "sigmoid" if len(arrays[1]) == 1 else "softmax"
        return self._add("Conv2D", x, arrays=arrays, padding="same", activation=activation)
