"""Packages of the BioImage Model Zoo: descriptions of both formats, weights of each kind, test tensors replayed.

The packages are put together here, from weights made here and, where the shared data is at hand, from the weights and
the test pair that a publisher gave out.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.importers.comparison import FIXTURES, TOLERANCE
from tests.importers.make_fixtures import make_checkpoint
from tests.importers.torch_networks import Nuclei, with_random_weights
from unet_fast import Engine
from unet_fast.importers import ModelFileError, import_model, read_model

yaml = pytest.importorskip("yaml", reason="descriptions are read with PyYAML")
pytest.importorskip("onnx", reason="packages have ONNX weights")

V4: dict[str, Any] = {
    "format_version": "0.4.9",
    "type": "model",
    "name": "nuclei",
    "inputs": [
        {
            "name": "raw",
            "axes": "bcyx",
            "data_type": "float32",
            "shape": [1, 1, 32, 32],
            "preprocessing": [{"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "yx"}}],
        }
    ],
    "outputs": [{"name": "probability", "axes": "bcyx", "postprocessing": [{"name": "sigmoid"}]}],
    "test_inputs": ["test_input.npy"],
    "test_outputs": ["test_output.npy"],
}
V5: dict[str, Any] = {
    "format_version": "0.5.4",
    "type": "model",
    "name": "nuclei",
    "inputs": [
        {
            "id": "raw",
            "axes": [
                {"type": "batch", "size": 1},
                {"type": "channel", "channel_names": ["raw"]},
                {"type": "space", "id": "y", "size": {"min": 32, "step": 8}},
                {"type": "space", "size": {"min": 32, "step": 8}},
            ],
            "test_tensor": {"source": "test_input.npy"},
            "preprocessing": [
                {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
                {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"], "eps": 1e-6}},
            ],
        }
    ],
    "outputs": [
        {
            "id": "probability",
            "axes": [
                {"type": "batch"},
                {"type": "channel", "channel_names": ["probability"]},
                {"type": "space", "id": "y", "size": {"tensor_id": "raw", "axis_id": "y"}, "halo": 4},
                {"type": "space", "size": {"tensor_id": "raw", "axis_id": "x"}, "halo": 4},
            ],
            "test_tensor": {"source": "test_output.npy"},
            "postprocessing": [{"id": "sigmoid"}],
        }
    ],
}


def _write(folder: Path, description: dict[str, Any], image: Any, result: Any, weights: dict[str, Path]) -> Path:
    """A package in a new `folder`, its tensors and files with checksums; the path of its description."""
    folder.mkdir()
    description = copy.deepcopy(description)
    np.save(folder / "test_input.npy", image)
    np.save(folder / "test_output.npy", result)
    description["weights"] = {}
    for kind, path in weights.items():
        shutil.copy(path, folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        description["weights"][kind] = {"source": path.name, "sha256": digest}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(description))
    return folder / "rdf.yaml"


def _standardised(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy((image - image.mean()) / (image.std() + 1e-6))


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A raw 12-bit image (1, 1, 32, 40), the probability of a network with random weights, and its state dict."""
    network = with_random_weights(Nuclei(base=4), seed=40).double()
    image = np.random.default_rng(41).uniform(0, 4095, (1, 1, 32, 40)).astype(np.float32)
    with torch.no_grad():
        result = network(_standardised(image.astype(np.float64))).sigmoid().float().numpy()
    path = tmp_path_factory.mktemp("nuclei") / "weights.pt"
    torch.save(network.float().state_dict(), path)
    return image, result, path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("description", [V4, V5], ids=["0.4", "0.5"])
def test_state_dict(description: dict[str, Any], zipped: bool, nuclei: Any, tmp_path: Path) -> None:
    image, result, weights = nuclei
    path = _write(tmp_path / "package", description, image, result, {"pytorch_state_dict": weights})
    source = path.parent
    if zipped:
        source = tmp_path / "package.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in path.parent.iterdir():
                archive.write(file, file.name)
    report = import_model(source, tmp_path / "a.unet")
    replayed = dict(report.errors)["the package's test image 0"]
    assert replayed <= TOLERANCE
    assert f"'nuclei' of the BioImage Model Zoo (format {description['format_version']})" in report.found
    assert Engine(tmp_path / "a.unet").info.tile == 32


def test_onnx_weights_come_first(tmp_path: Path) -> None:
    """The committed export takes its images as they are, and its probabilities come from PyTorch."""
    with np.load(FIXTURES / "nuclei.npz") as pair:
        image, result = (pair[key].transpose(0, 3, 1, 2) for key in ("image", "result"))
    description = copy.deepcopy(V5)
    description["inputs"][0]["preprocessing"] = []
    unusable = tmp_path / "weights.pt"
    unusable.write_bytes(b"nothing")
    weights = {"pytorch_state_dict": unusable, "onnx": FIXTURES / "nuclei.onnx"}
    report = import_model(_write(tmp_path / "p", description, image, result, weights), tmp_path / "a.unet")
    assert "ONNX" in report.found
    assert len(report.errors) == 2
    assert all(error <= TOLERANCE for _, error in report.errors)


@pytest.mark.parametrize(
    ("preprocessing", "kind", "mean", "std"),
    [
        ([], "uint8", [0, 0, 0], [1 / 255] * 3),
        ([("scale_linear", {"gain": 1 / 255, "offset": 0})], "uint8", [0, 0, 0], [1, 1, 1]),
        ([("scale_linear", {"gain": [0.5, 1, 2], "offset": [1, 0, -1]})], "float32", [-2, 0, 0.5], [2, 1, 0.5]),
        (
            [("zero_mean_unit_variance", {"mode": "fixed", "mean": [10, 20, 30], "std": [51, 51, 102]})],
            "uint8",
            [10 / 255, 20 / 255, 30 / 255],
            [0.2, 0.2, 0.4],
        ),
        ([("fixed_zero_mean_unit_variance", {"mean": 6553.5, "std": 13107})], "uint16", [0.1] * 3, [0.2] * 3),
    ],
)
def test_fixed_preprocessing(
    preprocessing: list[Any], kind: str, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, "c", seed=42, layout="2021-12")
    network_input = np.random.default_rng(43).integers(0, 200, (32, 32, 3)).astype(kind)
    description = copy.deepcopy(V4)
    description["inputs"][0] |= {
        "axes": "yxc",
        "shape": [32, 32, 3],
        "data_type": kind,
        "preprocessing": [{"name": name, "kwargs": arguments} for name, arguments in preprocessing],
    }
    result = np.full((1, 1, 32, 32), 0.25, np.float32)
    model = read_model(_write(tmp_path / "p", description, network_input, result, {"pytorch_state_dict": checkpoint}))
    rule = model.graph.normalisation.to_dict(3)
    assert rule["mean"] == pytest.approx(mean)
    assert rule["std"] == pytest.approx(std)
    white = {"uint8": 255, "uint16": 65535}.get(kind, 1)
    assert model.pairs[0].pixels == pytest.approx(network_input / np.float32(white))
    with pytest.raises(ModelFileError, match=r"differs from the package's test image 0 by .*; nothing was written"):
        import_model(tmp_path / "p", tmp_path / "a.unet")  # the result is not what the network gives
    assert not (tmp_path / "a.unet").exists()


def test_the_publishers_own_pair(shared_data: Path, tmp_path: Path) -> None:
    """The weights and test pair that the model zoo's example was published with."""
    folder = shared_data / "reference_unet_nuclei"
    state = {path.name.removesuffix(".npy"): torch.from_numpy(np.load(path)) for path in (folder / "weights").iterdir()}
    weights = tmp_path / "weights.pt"
    torch.save(state, weights)
    tensors = (np.load(folder / f"test_{name}.npy") for name in ("input", "output"))
    report = import_model(
        _write(tmp_path / "p", V5, *tensors, {"pytorch_state_dict": weights}), tmp_path / "a.unet", precision="float32"
    )
    assert dict(report.errors)["the package's test image 0"] <= TOLERANCE


# -- what is refused -------------------------------------------------------------------------------------------------


def _set(*keys: Any, value: Any) -> Any:
    def change(description: dict[str, Any]) -> None:
        place: Any = description
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", value="0.3.2"), r"format 0\.3\.2; accepted are models of 0\.4 and 0\.5"),
        (_set("type", value="dataset"), "a dataset of format"),
        (_set("inputs", value=V5["inputs"] * 2), "it has 2 inputs"),
        (_set("weights", "pytorch_state_dict", "source", value="../weights.pt"), r"'\.\./weights\.pt' lies outside"),
        (_set("weights", "pytorch_state_dict", "source", value="https://a.b/w.pt"), "nothing is downloaded"),
        (_set("weights", "pytorch_state_dict", "source", value="no.pt"), r"'no\.pt' is missing from the package"),
        (_set("weights", "pytorch_state_dict", "source", value="é" * 300), "names no file: File name too long"),
        (_set("weights", "pytorch_state_dict", "source", value="a\0b"), "names no file: embedded null byte"),
        (_set("weights", "pytorch_state_dict", "sha256", value="0" * 64), r"'weights\.pt' is damaged"),
        (_set("weights", value={"torchscript": {"source": "a.pt"}}), "torchscript: cannot be read without running it"),
        (_set("inputs", 0, "preprocessing", value=[{"id": "scale_range"}]), "preprocessing 'scale_range'"),
        (_set("outputs", 0, "postprocessing", value=[{"id": "binarize"}]), "postprocessing binarize"),
        (_set("inputs", 0, "axes", 1, "channel_names", value=["a", "b"]), "over xy; the engine takes all pixels"),
        (_set("inputs", value=3), "is not as the format has it"),
    ],
)
def test_packages_that_are_refused(change: Any, message: str, nuclei: Any, tmp_path: Path) -> None:
    image, result, weights = nuclei
    path = _write(tmp_path / "package", V5, image, result, {"pytorch_state_dict": weights})
    description = yaml.safe_load(path.read_text())
    change(description)
    path.write_text(yaml.safe_dump(description))
    with pytest.raises(ModelFileError, match=message):
        read_model(path.parent)


def test_other_text_is_refused(tmp_path: Path) -> None:
    for text in ("a: [", "just words"):
        (tmp_path / "rdf.yaml").write_text(text)
        with pytest.raises(ModelFileError, match=r"rdf\.yaml (is not YAML|does not describe a model)"):
            read_model(tmp_path)


def test_pickled_test_tensors_are_refused(nuclei: Any, tmp_path: Path) -> None:
    image, result, weights = nuclei
    path = _write(tmp_path / "p", V5, image, result, {"pytorch_state_dict": weights})
    np.save(path.parent / "test_input.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ModelFileError, match=r"'test_input\.npy' is not a NumPy array"):
        read_model(path)
