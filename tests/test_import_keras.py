"""Keras files, written by Keras 2 and 3, against what Keras made of an image.

The committed files need h5py only; where Keras is installed, fresh ones with other weights are written too.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importers.comparison import FIXTURES, TOLERANCE, assert_faithful
from unet_fast import Engine
from unet_fast.freeze import relative_error
from unet_fast.importers import ModelFileError, Options, import_model, read_model

h5py = pytest.importorskip("h5py", reason="Keras files are read with h5py")

NETWORKS = ("simple", "multi", "nearest", "mixed")
FILES = (
    "keras2_simple_weights.h5",
    "keras2_nearest.h5",
    "keras2_mixed.h5",
    "keras3_multi.weights.h5",
    "keras3_nearest.keras",
    "keras3_mixed.h5",
)


def _pair(name: str) -> Path:
    return FIXTURES / f"{name.partition('.')[0].removesuffix('_weights')}.npz"


def _white(name: str) -> float:
    return 255.0 if "mixed" in name else 1.0  # that one scales pixels of 0..255 itself


@pytest.mark.parametrize("name", FILES)
def test_committed_files(name: str, tmp_path: Path) -> None:
    report = assert_faithful(FIXTURES / name, _pair(name), tmp_path, white=_white(name))
    assert ("weights" in report.found) == ("weights" in name)


@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_files_of_keras_3(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:  # not imported before its backend is chosen
        pytest.skip("needs Keras 3 to write fresh files")
    from tests.importers.make_fixtures import make_keras

    endings = (".h5", ".keras") if name == "mixed" else (".h5", ".keras", ".weights.h5")
    make_keras(tmp_path, name, seed=101, endings=endings)
    for ending in endings:
        assert_faithful(
            tmp_path / f"keras3_{name}{ending}", tmp_path / f"keras3_{name}.npz", tmp_path, white=_white(name)
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_files_of_keras_2(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tf_keras", reason="writes fresh files with Keras 2")
    from tests.importers.make_fixtures import make_tf_keras

    endings = (".h5", ".keras") if name == "mixed" else (".h5", ".keras", ".weights.h5", "_weights.h5")
    make_tf_keras(tmp_path, name, seed=102, endings=endings)
    for ending in endings:
        assert_faithful(
            tmp_path / f"keras2_{name}{ending}", tmp_path / f"keras2_{name}.npz", tmp_path, white=_white(name)
        )


@pytest.mark.parametrize(("l2", "axis"), [("columns", 0), ("rows", 1)])
def test_lines_of_norm_1(l2: Any, axis: int, tmp_path: Path) -> None:
    """As `keras.utils.normalize(image, axis=axis)` before the network, a line of zeros included."""
    source = FIXTURES / "keras2_nearest.h5"
    import_model(source, tmp_path / "plain.unet", precision="float32")
    report = import_model(source, tmp_path / "lines.unet", Options(l2=l2), precision="float32")
    assert ("lines_of_norm_1", "l2_normalise") in report.plain
    image = np.random.default_rng(5).random((32, 48)).astype(np.float32)
    image[3], image[:, 7] = 0, 0
    norms = np.linalg.norm(image, 2, axis, keepdims=True)
    normalised = image / np.where(norms == 0, 1, norms)
    plain, lines = (Engine(tmp_path / f"{name}.unet", device="cpu", precision="float32") for name in ("plain", "lines"))
    expected = plain.probability(normalised, tiling="none")
    assert relative_error(lines.probability(image, tiling="none"), expected) <= TOLERANCE
    assert lines.info.halo is None  # so that no tiles stand for the whole image


@pytest.mark.parametrize(
    ("channels", "classes", "parameters"), [(1, 1, 1_940_817), (3, 1, 1_941_105), (1, 4, 1_940_868)]
)
def test_weight_file_of_the_published_size(channels: int, classes: int, parameters: int, tmp_path: Path) -> None:
    """The simple U-Net with 16 filters has so many parameters, whatever its layers are called."""
    path, count = tmp_path / "mitochondria.hdf5", 0
    random = np.random.default_rng(channels + classes)
    shapes, before = [], channels
    for width in (16, 32, 64, 128, 256):
        shapes += [(3, 3, before, width), (3, 3, width, width)]
        before = width
    for width in (128, 64, 32, 16):
        shapes += [(2, 2, width, before), (3, 3, 2 * width, width), (3, 3, width, width)]
        before = width
    shapes.append((1, 1, 16, classes))
    with h5py.File(path, "w") as file:
        names = [f"layer_{index + 40}" for index in range(len(shapes))]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, shape in zip(names, shapes, strict=True):
            outputs = shape[2] if shape[0] == 2 else shape[3]
            arrays = {"kernel:0": random.normal(0, 0.1, shape), "bias:0": random.normal(0, 0.1, outputs)}
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{key}".encode() for key in arrays]
            for key, array in arrays.items():
                group[f"{name}/{key}"] = array.astype(np.float32)
                count += array.size
    assert count == parameters
    model = read_model(path)
    assert sum(array.size for node in model.graph.nodes for array in node.tensors.values()) == parameters
    assert model.graph.output == ("sigmoid" if classes == 1 else "softmax")


# -- what is refused -------------------------------------------------------------------------------------------------


def _changed(name: str, folder: Path, change: dict[str, str]) -> Path:
    """A copy of a committed model whose description of its layers has other words in it."""
    path = folder / "changed.h5"
    path.write_bytes((FIXTURES / name).read_bytes())
    with h5py.File(path, "r+") as file:
        text = str(file.attrs["model_config"])
        for old, new in change.items():
            assert old in text
            text = text.replace(old, new)
        json.loads(text)
        file.attrs["model_config"] = text
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {'"class_name": "Conv2DTranspose"': '"class_name": "SeparableConv2D"'},
            r"SeparableConv2D.*known are InputLayer",
        ),
        ({'"activation": "relu"': '"activation": "swish"'}, r"activation must be linear, relu.*got swish"),
        ({'"data_format": "channels_last"': '"data_format": "channels_first"'}, "data_format must be channels_last"),
        ({'"dilation_rate": [1, 1]': '"dilation_rate": [2, 2]'}, "dilation_rate must be"),
        ({'"strides": [2, 2]': '"strides": [1, 1]'}, r"strides must be its pool_size \[2, 2\]"),
        ({'"class_name": "Functional"': '"class_name": "Sequential"'}, "a Keras model of the kind Sequential"),
        (
            {'"class_name": "SpatialDropout2D"': '"class_name": "Lambda"'},
            r"Lambda\): it holds Python code.*--skip-lambda",
        ),
        ({'"inbound_nodes"': '"bound"'}, "not as Keras writes it"),
    ],
)
def test_models_that_are_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(_changed("keras2_mixed.h5", tmp_path, change))


def test_a_skipped_lambda_changes_nothing(tmp_path: Path) -> None:
    path = _changed("keras2_mixed.h5", tmp_path, {'"class_name": "SpatialDropout2D"': '"class_name": "Lambda"'})
    assert_faithful(path, FIXTURES / "keras2_mixed.npz", tmp_path, Options(skip_lambda=True), white=255.0)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.weights.h5"
    with h5py.File(path, "w") as file:
        for index in range(5):
            variables = file.create_group(f"layers/conv2d{f'_{index}' if index else ''}/vars")
            variables["0"], variables["1"] = np.zeros((3, 3, 1, 1)), np.zeros(1)
    with pytest.raises(
        ModelFileError, match=r"weights of 5 convolutions and 0 transposed ones; .*save the whole model"
    ):
        read_model(path)


def test_an_hdf5_file_without_layers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["raw"] = np.zeros((4, 4))
    with pytest.raises(ModelFileError, match=r"images\.h5: an HDF5 file with raw, but no layers of Keras"):
        read_model(tmp_path / "images.h5")


def test_a_cut_file_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes((FIXTURES / "keras2_mixed.h5").read_bytes()[:20_000])
    with pytest.raises(ModelFileError, match="not a sound Keras file"):
        import_model(path, tmp_path / "cut.unet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.h5"]
