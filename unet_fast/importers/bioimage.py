"""Packages of the BioImage Model Zoo: an `rdf.yaml` (format 0.4 or 0.5) beside weights and test tensors.

What happens to an image before and behind the network stands in the description and becomes normalisation and output;
the test tensors become pairs that `import_model` replays.  ONNX weights are preferred, then a PyTorch state dict of a
network that is known by its keys, then Keras HDF5.  Source code of a package is never run.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..graph import Array, Graph, Normalisation, canonical
from .keras import read_keras
from .milesial import from_state_dict, load_state_dict
from .model import ImportedModel, ModelFileError, Options, PublishedPair, Result, begin, finish, needs
from .onnx import read_onnx
from .sources import DESCRIPTIONS

_FORMATS = ("0.4", "0.5")
#: What counts as white where the description has no range of values; floating point is taken as it is.
_WHITE = {"uint8": 255.0, "uint16": 65535.0}


def read_package(path: Path, options: Options) -> ImportedModel:
    """The network of a package: a zip archive, or the path of its description in a folder."""
    yaml = needs("yaml", "reading a package of the BioImage Model Zoo")
    with _folder_of(path) as (folder, name):
        try:
            description = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{name} is not YAML: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(description, Mapping):
            raise ModelFileError(f"{name} does not describe a model")
        try:
            return _read(_Files(folder), description, options)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ModelFileError(f"{name} is not as the format has it: {error!r}") from None


@contextmanager
def _folder_of(path: Path) -> Iterator[tuple[Path, str]]:
    """The folder of a package, an archive unpacked to a temporary one, and the name of its description."""
    if not zipfile.is_zipfile(path):
        yield path.parent, path.name
        return
    with tempfile.TemporaryDirectory(prefix="unet_fast-") as temporary, zipfile.ZipFile(path) as archive:
        try:
            archive.extractall(temporary)  # keeps every member inside the folder
        except Exception as error:  # zipfile and its decompressors each raise their own
            raise ModelFileError(f"a damaged zip archive: {error}") from None
        names = archive.namelist()
        yield Path(temporary), next(name for name in DESCRIPTIONS if name in names)


class _Files:
    """The files of a package, inside its folder only, each checked against its checksum where there is one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def path(self, entry: Any, checksum: str | None = None) -> Path:
        """`entry` is a relative path, or a mapping with `source` and perhaps `sha256`."""
        if isinstance(entry, Mapping):
            entry, checksum = entry["source"], entry.get("sha256") or checksum
        text = str(entry)
        if "://" in text:
            raise ModelFileError(
                f"{text} is not in the package and nothing is downloaded; put the file beside rdf.yaml"
            )
        try:
            path = (self._folder / PurePosixPath(text)).resolve()
            is_inside = path.is_relative_to(self._folder)
            is_file = is_inside and path.is_file()
        except (OSError, ValueError) as error:  # too long for a name, or with a zero in it
            raise ModelFileError(f"{text[:40]!r} names no file: {getattr(error, 'strerror', None) or error}") from None
        if not is_inside:
            raise ModelFileError(f"{text!r} lies outside the package")
        if not is_file:
            raise ModelFileError(f"{text!r} is missing from the package")
        if checksum and hashlib.sha256(path.read_bytes()).hexdigest() != str(checksum).lower():
            raise ModelFileError(f"{text!r} is damaged: its SHA-256 is not the one in the description")
        return path

    def array(self, entry: Any) -> Array:
        path = self.path(entry)
        try:
            array: Array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ModelFileError(f"{path.name!r} is not a NumPy array: {error}") from None
        return array


def _read(files: _Files, description: Mapping[str, Any], options: Options) -> ImportedModel:
    version = str(description.get("format_version", "none"))
    if not version.startswith(_FORMATS) or description.get("type", "model") != "model":
        raise ModelFileError(
            f"a {description.get('type', 'resource')} of format {version}; accepted are models of "
            f"{' and '.join(_FORMATS)}"
        )
    image, result = _only(description, "inputs"), _only(description, "outputs")
    test = _load(files, description, image, "test_inputs"), _load(files, description, result, "test_outputs")
    white = _white(image, test[0])
    options = replace(
        options,
        normalisation=options.normalisation or _normalisation(image, white),
        result=_result(result) if options.result == "auto" else options.result,
        raw="result",
        tile=options.tile or _side(image),
    )
    model = _weights(files, description["weights"], options)
    pixels = (_image_axes(test[0], image) / white).astype(np.float32)
    truths = _image_axes(test[1], result).astype(np.float32)
    pairs = tuple(
        PublishedPair(picture, truth, f"the package's test image {index}")
        for index, (picture, truth) in enumerate(zip(pixels, truths, strict=True))
    )
    return replace(
        model,
        found=f"{str(description.get('name', '?'))!r} of the BioImage Model Zoo (format {version}): {model.found}",
        pairs=pairs,
    )


def _only(description: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entries = description[key]
    if len(entries) != 1:
        raise ModelFileError(f"it has {len(entries)} {key}; a network with one can be imported")
    entry: Mapping[str, Any] = entries[0]
    return entry


def _load(files: _Files, description: Mapping[str, Any], tensor: Mapping[str, Any], key: str) -> Array:
    """The test tensor of an input or output: its own (0.5), or the one in a list of the description (0.4)."""
    entry = tensor["test_tensor"] if "test_tensor" in tensor else description[key][0]
    return files.array(entry)


def _white(image: Mapping[str, Any], test: Array) -> float:
    """The upper end of an image's values: as described, or as its type has it."""
    data = image.get("data")
    described = (
        data if isinstance(data, Mapping) else {"type": image.get("data_type"), "range": image.get("data_range")}
    )
    highest = (described.get("range") or [None, None])[1]
    if highest is not None and 0 < float(highest) < np.inf:
        return float(highest)
    return _WHITE.get(str(described.get("type") or test.dtype), 1.0)


# -- axes ------------------------------------------------------------------------------------------------------------


def _axes(tensor: Mapping[str, Any]) -> str:
    """One letter for each axis, of "bcyx" and others: "bcyx" itself (0.4), or a list of mappings (0.5)."""
    axes = tensor["axes"]
    if isinstance(axes, str):
        return axes
    # In a description an axis may go by its type alone; of space, x is the one without a name.
    letters = {"batch": "b", "channel": "c", "time": "t", "index": "i"}
    return "".join(letters.get(axis["type"]) or str(axis.get("id", "x")) for axis in axes)


def _image_axes(array: Array, tensor: Mapping[str, Any]) -> Array:
    """`array` as (N, H, W, C)."""
    axes = _axes(tensor)
    if len(axes) != array.ndim or not set("yx") <= set(axes):
        raise ModelFileError(f"a test tensor of the shape {array.shape} does not fit the axes {axes!r}")
    for position in range(len(axes) - 1, -1, -1):  # other axes, such as z or time, must be of length 1
        if axes[position] not in "bcyx":
            if array.shape[position] != 1:
                raise ModelFileError(f"axis {axes[position]!r} has {array.shape[position]} entries; images are yx")
            array = np.squeeze(array, position)
            axes = axes[:position] + axes[position + 1 :]
    for missing in set("bc") - set(axes):
        array, axes = array[None], missing + axes
    return array.transpose([axes.index(letter) for letter in "byxc"])


def _side(tensor: Mapping[str, Any]) -> int | None:
    """The trained side, where the description has a fixed or a least size."""
    axes, shape = _axes(tensor), tensor.get("shape")
    position = axes.index("y")
    size = tensor["axes"][position].get("size") if shape is None else shape
    if isinstance(size, Mapping):
        size = size.get("min")
    if isinstance(size, Sequence):
        size = size[position]
    return size if isinstance(size, int) and size >= 1 else None


# -- before and behind the network -----------------------------------------------------------------------------------


class _Step(NamedTuple):
    """A step of pre- or postprocessing."""

    name: str
    arguments: Mapping[str, Any]


def _steps(tensor: Mapping[str, Any], key: str) -> list[_Step]:
    """All of them but those that only change the type."""
    steps = [_Step(step.get("id") or step["name"], step.get("kwargs") or {}) for step in tensor.get(key) or []]
    return [step for step in steps if step.name != "ensure_dtype"]


def _normalisation(image: Mapping[str, Any], white: float) -> Normalisation:
    """What the preprocessing does to pixels in [0, 1], of which the description knows `white` times as much."""
    scale, shift = np.array([white]), np.array([0.0])  # x = v * scale + shift
    steps = _steps(image, "preprocessing")
    for position, (name, arguments) in enumerate(steps):
        mode = arguments.get("mode", "per_sample" if name == "zero_mean_unit_variance" else "fixed")
        if name == "scale_linear":
            gain, offset = _numbers(arguments.get("gain", 1)), _numbers(arguments.get("offset", 0))
            scale, shift = scale * gain, shift * gain + offset
        elif name in ("fixed_zero_mean_unit_variance", "zero_mean_unit_variance") and mode == "fixed":
            mean, std = _numbers(arguments["mean"]), _numbers(arguments["std"])
            scale, shift = scale / std, (shift - mean) / std
        elif name == "zero_mean_unit_variance" and mode == "per_sample" and position == len(steps) - 1:
            _check_whole_image(image, arguments.get("axes"))
            if scale.size > 1 or shift.size > 1:
                raise ModelFileError("preprocessing: channels that are scaled apart cannot be standardised together")
            return Normalisation("standardise", epsilon=float(arguments.get("eps", 1e-6)) / float(scale[0]))
        else:
            raise ModelFileError(
                f"preprocessing {name!r} ({mode}) cannot be imported; possible are scale_linear, "
                "fixed_zero_mean_unit_variance, and zero_mean_unit_variance (fixed, or last and of the whole image)"
            )
    if scale.min() <= 0:
        raise ModelFileError(f"preprocessing scales pixels by {scale.tolist()}, which must be above 0")
    mean, std = np.broadcast_arrays(-shift / scale, 1 / scale)
    return Normalisation("fixed", tuple(mean.tolist()), tuple(std.tolist()))


def _numbers(value: Any) -> Array:
    return np.atleast_1d(np.asarray(value, np.float64))


def _check_whole_image(image: Mapping[str, Any], axes: Any) -> None:
    """The engine standardises all pixels and channels of an image together."""
    names = {"channel": "c", "batch": "b"}
    given = {names.get(axis, axis) for axis in (axes or "cyx")}
    channels = None
    for letter, axis in zip(_axes(image), image["axes"], strict=True):
        if letter == "c":
            names_of_channels = axis.get("channel_names") if isinstance(axis, Mapping) else None
            channels = len(names_of_channels) if names_of_channels else image["shape"][_axes(image).index("c")]
    if not {"y", "x"} <= given or ("c" not in given and channels not in (None, 1)):
        raise ModelFileError(
            f"preprocessing zero_mean_unit_variance over {''.join(sorted(given))}; the engine takes all pixels and "
            "channels of an image together"
        )


def _result(result: Mapping[str, Any]) -> Result:
    """What the postprocessing makes of the network's last values; "auto" where it leaves them as they are."""
    names = [step.name for step in _steps(result, "postprocessing")]
    if not names:
        return "auto"
    if names not in (["sigmoid"], ["softmax"]):
        raise ModelFileError(
            f"postprocessing {' and '.join(names)} cannot be imported; possible are sigmoid or softmax"
        )
    return "sigmoid" if names == ["sigmoid"] else "softmax"


# -- weights ---------------------------------------------------------------------------------------------------------


def _weights(files: _Files, entries: Mapping[str, Any], options: Options) -> ImportedModel:
    """The network of the first kind of weights that can be read; `ModelFileError` says why each of them cannot."""
    reasons = []
    for kind, read in _READERS.items():
        if kind in entries:
            try:
                return read(files.path(entries[kind]), options)
            except ModelFileError as error:
                reasons.append(f"{kind}: {error}")
    others = sorted(set(entries) - set(_READERS))
    if others:
        reasons.append(f"{', '.join(others)}: cannot be read without running it")
    raise ModelFileError(f"no weights that can be imported ({'; '.join(reasons)}); possible are {', '.join(_READERS)}")


def _state_dict(path: Path, options: Options) -> ImportedModel:
    state = load_state_dict(path)
    return _nuclei(state, options) if "encoders.0.0.weight" in state else from_state_dict(state, options)


def _nuclei(state: Mapping[str, Any], options: Options) -> ImportedModel:
    """UNet2d of the model zoo's own example: (convolution, convolution, ReLU) to a stage, bilinear upsampling and a
    1x1 convolution before each decoder stage, the skip first in the concat.
    """
    left = {name: np.asarray(value.double().numpy()) for name, value in state.items()}

    def conv(x: str, name: str, padding: int) -> str:
        weight, bias = left.pop(f"{name}.weight"), left.pop(f"{name}.bias")
        return graph.conv(name, x, canonical(weight), bias, (padding,) * 4)

    def block(x: str, name: str) -> str:
        return graph.activation(f"{name}.2", conv(conv(x, f"{name}.0", 1), f"{name}.1", 1), "relu")

    levels = sum(name.startswith("encoders.") and name.endswith(".0.weight") for name in left)
    graph = Graph(left["encoders.0.0.weight"].shape[1], tile=options.tile or 256)
    x, skips = begin(graph, options), []
    for level in range(levels):
        skips.append(block(x, f"encoders.{level}"))
        x = graph.pool(f"downsamplers.{level}", skips[-1])
    x = block(x, "base")
    for level in range(levels):
        x = conv(graph.upsample(f"upsamplers.{level}.0", x, "bilinear"), f"upsamplers.{level}.1", 0)
        x = block(graph.concat(f"concat.{level}", skips.pop(), x), f"decoders.{level}")
    x = conv(x, "output", 0)
    if left:
        raise ModelFileError(f"its state dict has entries with no place in UNet2d: {', '.join(sorted(left)[:4])}")
    finished = finish(graph, x, options)
    return ImportedModel(finished.graph, "a state dict of UNet2d, the model zoo's example", finished.remarks)


_READERS: dict[str, Callable[[Path, Options], ImportedModel]] = {
    "onnx": read_onnx,
    "pytorch_state_dict": _state_dict,
    "keras_hdf5": read_keras,
}
