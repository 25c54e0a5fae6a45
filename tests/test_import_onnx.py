"""ONNX files against ONNX Runtime or, where it is not installed, the reference evaluator of the package onnx.

Networks exported by PyTorch are committed and, where its exporters run, exported afresh; single nodes are written here.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importers.comparison import FIXTURES, TOLERANCE, assert_faithful
from unet_fast.graph import Normalisation
from unet_fast.importers import ModelFileError, Options, import_model, read_model

onnx = pytest.importorskip("onnx", reason="ONNX files are read with onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


@pytest.mark.parametrize("name", ["transposed.onnx", "bilinear.onnx", "nuclei.onnx", "monai.onnx"])
def test_committed_exports(name: str, tmp_path: Path) -> None:
    report = assert_faithful(FIXTURES / name, (FIXTURES / name).with_suffix(".npz"), tmp_path)
    assert not report.plain
    assert "pytorch" in report.found


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("dynamo", "opset"),
    [(False, 11), (False, 17), *(pytest.param(True, opset, marks=pytest.mark.slow) for opset in (18, 20))],
)
@pytest.mark.parametrize("name", ["transposed", "bilinear", "nuclei", "monai"])
def test_fresh_exports(name: str, dynamo: bool, opset: int, dynamic: bool, tmp_path: Path) -> None:
    """With the sizes fixed and not: then padding and upsampling are computed from the image's shape."""
    for module in (["onnxscript"] if dynamo else []) + (["monai"] if name == "monai" else []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module} to export")
    from tests.importers.make_fixtures import make_onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_onnx(tmp_path, name, 30 + opset, opset=opset, dynamo=dynamo, dynamic=dynamic)
    report = assert_faithful(path, path.with_suffix(".npz"), tmp_path)
    assert not report.plain
    assert any("exported for images of 32 x 32" in remark for remark in report.remarks) == (not dynamic)


# -- single nodes ----------------------------------------------------------------------------------------------------


def _file(
    folder: Path,
    nodes: Sequence[Any],
    weights: dict[str, Any],
    *,
    shape: Sequence[Any] = ("N", 2, "H", "W"),
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    name: str = "network.onnx",
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list("nchw")) for output in outputs],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / name)
    return folder / name


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(" "), [output], name=f"the_{output}", **attributes)


def _random(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.4, shape).astype(np.float32)


CONV = _node("Conv", "x w", "c", pads=[1, 1, 1, 1])
KERNEL = {"w": _random(4, 2, 3, 3)}
INT64_END = np.iinfo(np.int64).max

#: Name -> (nodes behind CONV, their weights).  The last one writes y.
ACCEPTED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "prelu": ([_node("PRelu", "c s", "y")], {"s": np.full((4, 1, 1), 0.25, np.float32)}),
    "leaky": ([_node("LeakyRelu", "c", "y", alpha=0.2)], {}),
    "tanh": ([_node("Tanh", "c", "y")], {}),
    "clip": ([_node("Clip", "c low", "y")], {"low": np.float32(0)}),
    "crop": (
        [_node("Slice", "c a b axes", "y")],
        {"a": np.array([1, 2]), "b": np.array([-1, INT64_END]), "axes": np.array([2, 3])},
    ),
    "pad": ([_node("Pad", "c p", "y")], {"p": np.array([0, 0, 2, 0, 0, 0, 0, 1])}),
    "pad with axes": (
        [_node("Pad", "c p zero axes", "y")],
        {"p": np.array([1, 2, 3, 4]), "zero": np.float32(0), "axes": np.array([2, 3])},
    ),
    "average pool": ([_node("AveragePool", "c", "y", kernel_shape=[2, 4], strides=[2, 4])], {}),
    "transposed, overlapping": (
        [_node("ConvTranspose", "c t b", "y", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"t": _random(4, 3, 3, 3), "b": _random(3)},
    ),
    "transposed 4x4": (
        [_node("ConvTranspose", "c t", "y", strides=[2, 2], pads=[1, 1, 1, 1])],
        {"t": _random(4, 3, 4, 4)},
    ),
    "same upper": ([_node("Conv", "c t", "y", auto_pad="SAME_UPPER")], {"t": _random(3, 4, 2, 4)}),
    "same lower": ([_node("Conv", "c t", "y", auto_pad="SAME_LOWER")], {"t": _random(3, 4, 2, 4)}),
    "wide padding": ([_node("Conv", "c t", "y", pads=[3, 0, 1, 2])], {"t": _random(3, 4, 2, 2)}),
    "nearest": (
        [
            _node(
                "Resize", "c  s", "y", mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
            )
        ],
        {"s": np.array([1, 1, 3, 3], np.float32)},
    ),
    "nearest, half pixels": ([_node("Resize", "c  s", "y")], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "linear": ([_node("Resize", "c  s", "y", mode="linear")], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "corners": (
        [_node("Resize", "c  s", "y", mode="linear", coordinate_transformation_mode="align_corners")],
        {"s": np.array([1, 1, 4, 4], np.float32)},
    ),
    "batch norm": (
        [_node("BatchNormalization", "c g b m v", "n", epsilon=0.01), _node("Relu", "n", "y")],
        {"g": _random(4), "b": _random(4), "m": _random(4), "v": 0.5 + _random(4) ** 2},
    ),
    "scaling of channels": (
        [_node("Mul", "c a", "d"), _node("Sub", "k d", "e"), _node("Div", "e f", "g"), _node("Add", "g a", "y")],
        {"a": _random(1, 4, 1, 1), "k": _random(4, 1, 1), "f": np.float32(3)},
    ),
    "sum": ([_node("Sum", "c c c", "y")], {}),
    "softmax": ([_node("Softmax", "c", "y", axis=1)], {}),
    "channels last": (
        [
            _node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
            _node("Concat", "t t", "d", axis=3),
            _node("Add", "d a", "e"),
            _node("Softmax", "e", "y"),
        ],
        {"a": _random(8)},
    ),
    "nothing": ([_node("Dropout", "c", "d"), _node("Identity", "d", "i"), _node("Cast", "i", "y", to=1)], {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("shape", [("N", 2, "H", "W"), (1, 2, 24, 24)])
def test_nodes(name: str, shape: Any, tmp_path: Path) -> None:
    nodes, weights = ACCEPTED[name]
    opset = 18 if name == "pad with axes" else 17
    nodes, weights = _as_large_as_the_image(name, nodes, weights)
    path = _file(tmp_path, [CONV, *nodes], KERNEL | weights, shape=shape, opset=opset)
    report = import_model(path, tmp_path / "a.unet", precision="float32")
    assert max(error for _, error in report.errors) <= TOLERANCE


def _as_large_as_the_image(
    name: str, nodes: Sequence[Any], weights: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The nodes with others behind them that undo a change of size: the result must be as large as the image."""
    channels = weights["t"].shape[1 if "transposed" in name else 0] if "t" in weights else 4
    half = [_node("MaxPool", "z", "y", kernel_shape=[2, 2], strides=[2, 2])]
    cut = [_node("Slice", "z from to axes2", "y")]
    behind: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "crop": ([_node("Pad", "z q", "y")], {"q": [0, 0, 1, 2, 0, 0, 1, 0]}),
        "pad": (cut, {"from": [2, 0], "to": [INT64_END, -1], "axes2": [2, 3]}),
        "pad with axes": (cut, {"from": [1, 2], "to": [-3, -4], "axes2": [2, 3]}),
        "wide padding": (cut, {"from": [2, 1], "to": [-1, INT64_END], "axes2": [2, 3]}),
        "average pool": ([_node("ConvTranspose", "z r", "y", strides=[2, 4])], {"r": _random(channels, 3, 2, 4)}),
        "transposed, overlapping": (half, {}),
        "transposed 4x4": (half, {}),
        "nearest": ([_node("AveragePool", "z", "y", kernel_shape=[3, 3], strides=[3, 3])], {}),
        "nearest, half pixels": (half, {}),
        "linear": (half, {}),
        "corners": ([_node("MaxPool", "z", "y", kernel_shape=[4, 4], strides=[4, 4])], {}),
    }
    if name not in behind:
        return list(nodes), weights
    *first, last = nodes
    renamed = helper.make_node(last.op_type, last.input, ["z"], name="the_z")
    renamed.attribute.extend(last.attribute)
    more, constants = behind[name]
    return [*first, renamed, *more], weights | {key: np.asarray(value) for key, value in constants.items()}


@pytest.mark.parametrize("opset", range(11, 22))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    """The nodes of a U-Net, whose forms have changed between 11 and 21."""
    nodes = [
        CONV,
        _node("Relu", "c", "r"),
        _node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        _node("Resize", "p roi s", "u", mode="linear", coordinate_transformation_mode="half_pixel"),
        _node("ConvTranspose", "p t", "v", strides=[2, 2]),
        _node("Concat", "r u v", "d", axis=1),
        _node("Pad", "d q", "e"),
        _node("Conv", "e k b", "y"),
    ]
    weights = KERNEL | {
        "roi": np.zeros(0, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "t": _random(4, 2, 2, 2),
        "q": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "k": _random(3, 10, 3, 3),
        "b": _random(3),
    }
    report = import_model(_file(tmp_path, nodes, weights, opset=opset), tmp_path / "a.unet", precision="float32")
    assert max(error for _, error in report.errors) <= TOLERANCE
    assert f"opset {opset}" in report.found


@pytest.mark.parametrize("divisor", [255.0, 2.0])
def test_scaling_at_the_head_becomes_the_normalisation(divisor: float, tmp_path: Path) -> None:
    nodes = [
        _node("Div", "x white", "d"),
        _node("Sub", "d mean", "s"),
        _node("Conv", "s w", "y", pads=[1, 1, 1, 1]),
    ]
    weights = KERNEL | {"white": np.float32(divisor), "mean": np.array([0.4, 0.6], np.float32).reshape(2, 1, 1)}
    path = _file(tmp_path, nodes, weights)
    report = import_model(path, tmp_path / "a.unet", precision="float32")
    assert max(error for _, error in report.errors) <= TOLERANCE
    model = read_model(path)
    assert [node.kind for node in model.graph.nodes] == ["normalise", "conv", "output"]
    white = 255.0 if divisor == 255 else 1.0  # a network that divides by 255 was made for bytes
    assert model.graph.normalisation.mean == pytest.approx([0.4 * divisor / white, 0.6 * divisor / white])
    assert model.graph.normalisation.std == pytest.approx([divisor / white] * 2)


def test_images_with_channels_last(tmp_path: Path) -> None:
    nodes = [_node("Transpose", "x", "i", perm=[0, 3, 1, 2]), _node("Conv", "i w", "y", pads=[1, 1, 1, 1])]
    path = _file(tmp_path, nodes, KERNEL, shape=(1, "H", "W", 2))
    options = Options(normalisation=Normalisation("fixed", (0.5,), (0.25,)), result="identity")
    report = import_model(path, tmp_path / "a.unet", options, precision="float32")
    assert max(error for _, error in report.errors) <= TOLERANCE


def test_one_of_several_outputs(tmp_path: Path) -> None:
    nodes = [CONV, _node("Sigmoid", "c", "y"), _node("InstanceNormalization", "c g g", "other")]
    path = _file(tmp_path, nodes, KERNEL | {"g": _random(4)}, outputs=("y", "other"))
    with pytest.raises(ModelFileError, match=r"outputs y, other; say which one to take, got None"):
        read_model(path)
    model = read_model(path, Options(output="y"))  # what the other needs is not looked at
    assert model.graph.output == "sigmoid"


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "instance norm": (
        [_node("InstanceNormalization", "c g g", "y")],
        {"g": _random(4)},
        r"'the_y' \(InstanceNormalization\): its statistics come from each image",
    ),
    "attention": ([_node("Mul", "c c", "y")], {}, r"'the_y' \(Mul\): of two tensors only the sum is possible"),
    "stride": ([_node("Conv", "c t", "y", strides=[2, 2])], {"t": _random(1, 4, 3, 3)}, r"strides must be \[1, 1\]"),
    "groups": ([_node("Conv", "c t", "y", group=2)], {"t": _random(2, 2, 1, 1)}, "group must be 1, got 2"),
    "large kernel": (
        [_node("Conv", "c t", "y")],
        {"t": _random(1, 4, 5, 5)},
        r"up to 4 x 4 are possible, got \[5, 5\]",
    ),
    "overlapping pool": (
        [_node("MaxPool", "c", "y", kernel_shape=[3, 3], strides=[2, 2])],
        {},
        r"strides must be \[3, 3\], got \[2, 2\]",
    ),
    "cubic": ([_node("Resize", "c  s", "y", mode="cubic")], {"s": np.float32([1, 1, 2, 2])}, "got cubic, half_pixel"),
    "uneven scale": ([_node("Resize", "c  s", "y")], {"s": np.float32([1, 1, 2, 1.5])}, r"got N 1, C 1, H 2, W 1\.5"),
    "reflection": (
        [_node("Pad", "c p", "y", mode="reflect")],
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        "padding must be with zeros, got mode reflect",
    ),
    "softmax over rows": ([_node("Softmax", "c", "y", axis=2)], {}, "it must go over the channels"),
    "elu": ([_node("Elu", "c", "y")], {}, r"\(Elu\): activations are Relu"),
    "concat of rows": ([_node("Concat", "c c", "y", axis=2)], {}, "it must be along the channels"),
    "half size": ([_node("MaxPool", "c", "y", kernel_shape=[2, 2], strides=[2, 2])], {}, "output is"),
    "image of weights": ([_node("Add", "c a", "y")], {"a": _random(4, 24, 24)}, "one number, or one per channel"),
    "custom": ([helper.make_node("Magic", ["c"], ["y"], domain="some.where")], {}, r"\(Magic\): it has no counterpart"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nodes_that_are_refused(name: str, tmp_path: Path) -> None:
    nodes, weights, message = REFUSED[name]
    with pytest.raises(ModelFileError, match=message):
        import_model(_file(tmp_path, [CONV, *nodes], KERNEL | weights), tmp_path / "a.unet")
    assert not (tmp_path / "a.unet").exists()


def test_all_unknown_nodes_are_named(tmp_path: Path) -> None:
    nodes = [CONV, _node("Elu", "c", "a"), _node("Gelu", "a", "b"), _node("GlobalAveragePool", "b", "y")]
    with pytest.raises(ModelFileError, match=r"the_a.*Elu.*the_b.*Gelu.*the_y.*GlobalAveragePool"):
        read_model(_file(tmp_path, nodes, KERNEL, opset=20))


@pytest.mark.parametrize("opset", [10, 22])
def test_other_opsets_are_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"ONNX opset {opset}; accepted are 11 to 21"):
        read_model(_file(tmp_path, [_node("Conv", "x w", "y")], KERNEL, opset=opset))


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 2, 8, 8, 8), "with 4 axes"), ((1, 9, 8, 8), "1 to 4 channels"), ((1, 2), "with 4 axes")]
)
def test_other_inputs_are_refused(shape: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(_file(tmp_path, [_node("Relu", "x", "y")], {}, shape=shape))


def test_an_export_for_an_odd_size_is_refused(tmp_path: Path) -> None:
    nodes = [
        CONV,
        _node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        _node("ConvTranspose", "p t", "y", strides=[2, 2]),
    ]
    with pytest.raises(ModelFileError):
        read_model(_file(tmp_path, nodes, KERNEL | {"t": _random(4, 1, 2, 2)}, shape=(1, 2, 25, 25)))


# -- weights in other files ------------------------------------------------------------------------------------------


def _external(folder: Path, location: str) -> Path:
    path = _file(folder, [_node("Conv", "x w", "y", pads=[1, 1, 1, 1])], KERNEL)
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.save(model, path)
    return path


def test_weights_beside_the_file(tmp_path: Path) -> None:
    report = import_model(_external(tmp_path, "weights.bin"), tmp_path / "a.unet", precision="float32")
    assert max(error for _, error in report.errors) <= TOLERANCE


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(4096))
    for location in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(ModelFileError, match=r"lies in .*secret', outside the model's folder"):
            read_model(_external(tmp_path / "inner", location))


def test_missing_weights_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"elsewhere\.bin"):
        read_model(_external(tmp_path, "elsewhere.bin"))


@pytest.mark.parametrize("length", [1, 60, 1000])
def test_a_cut_file_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((FIXTURES / "nuclei.onnx").read_bytes()[:length])
    with pytest.raises(ModelFileError, match=r"cut\.onnx: "):
        read_model(tmp_path / "cut.onnx")
