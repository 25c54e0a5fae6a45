"""Promise 1 for other people's files: whatever a model file holds, it is imported or refused with a cause."""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.importers.comparison import FIXTURES
from tests.trust.conftest import Campaign
from unet_fast.importers import ModelFileError, read_model

#: What stands in for a value of a description.
ODD = (
    None, True, -1, 0, 1, 2, 3, 7, 65536, 2**31, 2**70, 0.5, -1e300, 1e-300, float("inf"), float("nan"), "", "x",
    "same", "valid", "softmax", "../x", "\0", "é" * 300, [], {}, [0, 0], [[]], [1, 1, 1, 1], {"name": "x"},
    [None] * 4, {"config": {}},
)  # fmt: skip


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(list or dict, its index or key) of every value in a document."""
    for key in range(len(tree)) if isinstance(tree, list) else tree:
        yield tree, key
        if isinstance(tree[key], list | dict):
            yield from _places(tree[key])


def changed(tree: Any, chance: random.Random) -> Any:
    """A document with a few values odd, gone, doubled or in each other's place."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        places = list(_places(tree))
        if not places:
            break
        (owner, key), (other, other_key) = chance.choice(places), chance.choice(places)
        way = chance.randrange(6)
        if way == 0:
            del owner[key]
        elif way == 1:
            owner[key] = copy.deepcopy(other[other_key])
        elif way == 2 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        elif way == 3 and isinstance(owner[key], int):
            owner[key] += chance.randint(-2, 2)
        else:
            owner[key] = copy.deepcopy(chance.choice(ODD))
    return tree


def _bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes others; sometimes cut."""
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 2, 8, 40])):
        damaged[chance.randrange(min(len(data), chance.choice([64, 2000, len(data)])))] = chance.randrange(256)
    return bytes(damaged[: chance.randrange(len(data))] if chance.random() < 0.1 else damaged)


def _flat(name: str) -> Callable[[random.Random, Path], Path]:
    def damage(chance: random.Random, folder: Path) -> Path:
        path = folder / "model"
        path.write_bytes(_bytes((FIXTURES / name).read_bytes(), chance))
        return path

    return damage


def _zipped(name: str, inner: str) -> Callable[[random.Random, Path], Path]:
    """One file of an archive is damaged; JSON as a document or as bytes."""

    def damage(chance: random.Random, folder: Path) -> Path:
        path = folder / "model.zip"
        with zipfile.ZipFile(FIXTURES / name) as whole, zipfile.ZipFile(path, "w") as archive:
            for member in whole.namelist():
                data = whole.read(member)
                if member.endswith(inner):
                    is_document = inner.endswith(".json") and chance.random() < 0.8
                    data = json.dumps(changed(json.loads(data), chance)).encode() if is_document else data
                    data = data if is_document else _bytes(data, chance)
                archive.writestr(member, data)
        return path

    return damage


def _hdf5(chance: random.Random, folder: Path) -> Path:
    """The description of the layers changes, or what the weights say of themselves."""
    import h5py

    path = folder / "model.h5"
    shutil.copy(FIXTURES / chance.choice(["keras2_nearest.h5", "keras3_mixed.h5"]), path)
    with h5py.File(path, "r+") as file:
        weights = file["model_weights"]
        if chance.random() < 0.8:
            file.attrs["model_config"] = json.dumps(changed(json.loads(file.attrs["model_config"]), chance))
        elif chance.random() < 0.5:
            names = changed([str(name) for name in weights.attrs["layer_names"]], chance)
            weights.attrs["layer_names"] = [str(name).strip("\0") for name in names] or 3.0
        else:
            del weights[chance.choice(list(weights))]
    return path


def _onnx(chance: random.Random, folder: Path) -> Path:
    """The fields of the message, as the JSON of protobuf."""
    import onnx
    from google.protobuf import json_format as form

    model = onnx.load(FIXTURES / chance.choice(["nuclei.onnx", "bilinear.onnx", "transposed.onnx"]))
    while True:
        try:
            made = form.ParseDict(changed(form.MessageToDict(model), chance), onnx.ModelProto())
            break
        except (form.ParseError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # no ONNX file says that
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def _state_dict(chance: random.Random, folder: Path) -> Path:
    import torch

    state = dict(torch.load(FIXTURES / chance.choice(["carvana.pth", "until_2019.pth"]), weights_only=True))
    for _ in range(chance.choice([1, 2, 4])):
        name, other = chance.choice(list(state)), chance.choice(list(state))
        way = chance.randrange(7)
        if way == 0:
            del state[name]
        elif way == 1:
            state[name] = state[other]
        elif way == 2:
            state[chance.choice(["x", "inc", "down1.", "up9.up.weight", "module.module.", name + ".x"])] = state[name]
        elif way == 3:
            state[name] = chance.choice(ODD)
        elif way == 4 and hasattr(state[name], "reshape"):
            state[name] = state[name].reshape(chance.choice([(-1,), (1, -1), (-1, 1, 1, 1, 1)]))
        elif hasattr(state[name], "to"):
            kinds = (torch.int8, torch.bool, torch.complex64, torch.bfloat16, torch.float64)
            state[name] = state[name].to(chance.choice(kinds))
    path = folder / "model.pth"
    torch.save(state, path)
    return path


def _package(chance: random.Random, folder: Path) -> Path:
    pytest.importorskip("onnx")
    from tests.test_import_bioimage import V4, V5

    description = dict(chance.choice([V4, V5]), weights={"onnx": {"source": "nuclei.onnx"}})
    package = folder / "package"
    package.mkdir()
    shutil.copy(FIXTURES / "nuclei.onnx", package)
    for name in ("test_input.npy", "test_output.npy"):
        np.save(package / name, np.zeros((1, 1, 32, 32), chance.choice([np.float32, np.uint8])))
    # JSON is YAML.
    (package / "rdf.yaml").write_text(json.dumps(changed(description, chance)))
    return package


SOURCES = {
    "ONNX": _onnx,
    "ONNX, bytes": _flat("nuclei.onnx"),
    "HDF5": _hdf5,
    "HDF5, bytes": _flat("keras2_nearest.h5"),
    "Keras": _zipped("keras3_nearest.keras", "config.json"),
    "Keras, weights": _zipped("keras3_nearest.keras", "model.weights.h5"),
    "PyTorch": _state_dict,
    "PyTorch, pickle": _zipped("carvana.pth", "data.pkl"),
    "BioImage package": _package,
}
PACKAGES = {"ONNX": "onnx", "HDF5": "h5py", "Keras": "h5py", "PyTorch": "torch", "BioImage": "yaml"}


def _refusal(path: Path) -> str | None:
    """What is said of a model file; None where it can be imported."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            read_model(path)
        except ModelFileError as refusal:
            return str(refusal)
    return None


@pytest.mark.parametrize("source", SOURCES)
def test_any_model_file(source: str, campaign: Campaign, tmp_path: Path) -> None:
    for kind, package in PACKAGES.items():
        if kind in source:
            pytest.importorskip(package)
    examples = campaign.count(12, 500)
    messages: list[str | None] = []

    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(chance=some.randoms(use_true_random=False))
    def check(chance: random.Random) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            message = _refusal(SOURCES[source](chance, Path(folder)))
        messages.append(message)
        assert message is None or (len(message) > 20 and "\n" not in message)

    check()
    refused = sum(message is not None for message in messages)
    assert refused > len(messages) / 10
    campaign.record(f"importer of {source}", examples=len(messages), refused=refused)
