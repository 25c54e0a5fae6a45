"""Freezing: what goes into the file, that it is the same network, that the bytes repeat, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.networks import NAMES, SPECS, frozen, graph_of, judge, random_weights
from train.model import UNet
from unet_fast import reference
from unet_fast.engine_file import read, read_document, serialise, write
from unet_fast.errors import EngineFileError, UnsupportedError
from unet_fast.freeze import SPEC_KEY, freeze, relative_error
from unet_fast.graph import Graph
from unet_fast.inspect import inspect
from unet_fast.spec import UNetSpec
from unet_fast.verify import verify

SPEC = SPECS["plain"]
ROOT = Path(__file__).resolve().parent.parent


def write_checkpoint(path: Path, spec: UNetSpec | None, weights: dict[str, np.ndarray]) -> Path:
    metadata = None if spec is None else {SPEC_KEY: json.dumps(spec.to_dict())}
    safetensors.numpy.save_file(weights, path, metadata)
    return path


# -- what the file holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_file_computes_what_pytorch_does(name: str, engine_file: Callable[..., Path]) -> None:
    """Weights rounded to float32 are the only difference: 1e-6 is several times what that gives."""
    graph, file = graph_of(name), read(engine_file(name))
    for image, probability in file.golden:
        truth = judge(graph, reference.to_unit(image[None]))[0]
        assert probability.dtype == np.float32
        assert relative_error(probability, truth) <= 1e-7
        assert relative_error(reference.probability(file.graph, reference.to_unit(image[None]))[0], truth) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_document_is_as_designed(name: str, engine_file: Callable[..., Path]) -> None:
    file = read(engine_file(name))
    document, graph = file.document, file.graph
    assert document["format_version"] == 1
    assert document["buffers"][0] == {
        "name": "image",
        "channels": graph.channels,
        "height": [1, 0, 1],
        "width": [1, 0, 1],
        "halo": 0,
        "slot": -1,
    }
    assert [buffer["name"] for buffer in document["buffers"]] == list(graph.shapes)
    assert document["ops"][-1]["op"] in ("head", "output")
    size, tile = document["size"], document["tile"]
    assert tile >= size["minimum"]
    assert tile % size["multiple"] == size["remainder"]
    assert document["halo"] is None or document["halo"] % size["multiple"] == 0
    assert document["output"]["channels"] == graph.result.channels
    mentioned = {f"{node.name}.{tensor}" for node in graph.nodes for tensor in node.tensors}
    mentioned |= {name for pair in document["golden"] for name in pair.values()}
    assert set(file.tensors) == mentioned
    assert {str(array.dtype) for array in file.tensors.values()} == {"float32", "uint8"}
    assert document["accuracy"]["float32"] <= 1e-6
    assert document["accuracy"]["fp16"] <= 5e-3
    assert document["kernels"] == []


def test_names_threshold_and_palette_are_kept(tmp_path: Path) -> None:
    palette = [(index, 0, 255) for index in range(5)]
    path = frozen("classes", tmp_path, name="tissue", threshold=0.25, palette=palette, precision="bf16")
    document = read_document(path)
    assert (document["name"], document["precision"]) == ("tissue", "bf16")
    assert document["output"] == {
        "kind": "softmax",
        "channels": 5,
        "threshold": 0.25,
        "class_names": ["a", "b", "c", "d", "e"],
        "palette": [list(colour) for colour in palette],
    }


def test_the_tile_is_made_legal(tmp_path: Path) -> None:
    document = read_document(frozen("valid_one_conv", tmp_path))
    assert (SPECS["valid_one_conv"].tile, document["tile"]) == (44, 46)


# -- every kind of model ---------------------------------------------------------------------------------------------


def test_module_pair_graph_and_checkpoint_give_the_same_bytes(tmp_path: Path) -> None:
    model = UNet(SPECS["batch_norm"])
    spec, weights = model.spec, {name: value.numpy() for name, value in model.state_dict().items()}
    checkpoint = write_checkpoint(tmp_path / "checkpoint.safetensors", spec, weights)
    bare = write_checkpoint(tmp_path / "bare.safetensors", None, weights)
    files = [
        freeze(model, tmp_path / "module.unet", name="n"),
        freeze((spec, weights), tmp_path / "pair.unet", name="n"),
        freeze(checkpoint, tmp_path / "checkpoint.unet", name="n"),
        freeze(str(checkpoint), tmp_path / "string.unet", name="n"),
        freeze(bare, tmp_path / "bare.unet", name="n", spec=spec),
    ]
    assert len({path.read_bytes() for path in files}) == 1


def test_half_precision_weights(tmp_path: Path) -> None:
    weights = {name: value.astype(np.float16) for name, value in random_weights(SPEC).items()}
    checkpoint = write_checkpoint(tmp_path / "half.safetensors", SPEC, weights)
    wide = {name: value.astype(np.float32) for name, value in weights.items()}
    expected = freeze((SPEC, wide), tmp_path / "wide.unet", name="n").read_bytes()
    assert freeze(checkpoint, tmp_path / "half.unet", name="n").read_bytes() == expected
    model = UNet(SPEC)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in wide.items()})
    rounded = {name: value.bfloat16().float().numpy() for name, value in model.state_dict().items()}
    expected = freeze((SPEC, rounded), tmp_path / "rounded.unet", name="n").read_bytes()
    assert freeze(model.bfloat16(), tmp_path / "bf16.unet", name="n").read_bytes() == expected


def test_the_same_bytes_from_another_process_without_torch(tmp_path: Path) -> None:
    script = """
import sys
from tests.networks import frozen
from pathlib import Path
print(frozen("batch_norm", Path(sys.argv[1])))
assert "torch" not in sys.modules, "freezing imported torch"
"""
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        digests.add(hashlib.sha256((folder / "batch_norm.unet").read_bytes()).hexdigest())
    digests.add(hashlib.sha256(frozen("batch_norm", tmp_path).read_bytes()).hexdigest())
    assert len(digests) == 1


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["decoder1.conv0.weight"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"decoder1.conv0.weight has 1 NaN or infinite values of 4608"):
        freeze((SPEC, weights), tmp_path / "bad.unet")
    assert not list(tmp_path.iterdir())


def test_overflow_in_the_precision_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["encoder0.conv0.weight"] *= 1e7
    with pytest.raises(ValueError, match=r'precision "fp16" is too narrow'):
        freeze((SPEC, weights), tmp_path / "engine.unet")
    freeze((SPEC, weights), tmp_path / "engine.unet", precision="bf16")


def test_overflow_while_folding_is_refused_by_name(tmp_path: Path) -> None:
    spec = SPECS["batch_norm"]
    weights = random_weights(spec)
    weights["encoder1.norm0.weight"][:] = 3e38
    weights["encoder1.conv0.weight"][:] = 1e3
    with pytest.raises(ValueError, match=r"encoder1.conv0.weight: folding gives values beyond float32"):
        freeze((spec, weights), tmp_path / "engine.unet", precision="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, r"precision must be one of float32, bf16, fp16, int8, got 'int4'"),
        ({"threshold": 1.0}, r"threshold must be between 0 and 1, got 1.0"),
        ({"threshold": float("nan")}, r"threshold must be between 0 and 1"),
        ({"class_names": ("a", "b")}, r"class_names must be 1 strings or \(\), got \['a', 'b'\]"),
        ({"palette": [(0, 0, 256)]}, r"palette must be 1 times"),
        ({"palette": [(0, 0)]}, r"palette must be 1 times"),
        ({"targets": "cpu"}, r"targets must be a sequence of names"),
    ],
)
def test_wrong_arguments(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        frozen("plain", tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_gpu_targets_need_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("unet_fast.kernels.aot", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("unet_fast.kernels.aot", raising=False)
    with pytest.raises(UnsupportedError, match=r"cannot compile for sm_90 here .*; install triton"):
        frozen("plain", tmp_path, targets=("cpu", "sm_90"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, r"model must be a checkpoint's path, .* got int"),
        ((None, {}), r"model has no UNetSpec \(got None\); pass spec="),
        (Graph(1), r"the graph has no output yet"),
    ],
)
def test_wrong_models(model: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(model, tmp_path / "engine.unet")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "spec is not JSON", "spec has an unknown field"])
def test_bad_checkpoints(kind: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "bad.safetensors", SPEC, random_weights(SPEC))
    data = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"PK\x03\x04 a zip file, as torch.save writes them")
    elif kind == "truncated":
        path.write_bytes(data[:-100])
    else:
        text = "{" if kind == "spec is not JSON" else json.dumps({"width": 3})
        safetensors.numpy.save_file(random_weights(SPEC), path, {SPEC_KEY: text})
    with pytest.raises(ValueError, match=r"bad.safetensors: not a checkpoint that can be frozen"):
        freeze(path, tmp_path / "engine.unet")
    assert not (tmp_path / "engine.unet").exists()


def test_a_checkpoint_without_spec_says_what_to_do(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "bare.safetensors", None, random_weights(SPEC))
    with pytest.raises(ValueError, match=r"pass spec="):
        freeze(path, tmp_path / "engine.unet")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        freeze(tmp_path / "nowhere.safetensors", tmp_path / "engine.unet")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        frozen("plain", tmp_path / "file" / "folder")
    assert frozen("plain", tmp_path / "new" / "folder").exists()


@pytest.mark.parametrize("when", ["writing", "syncing", "renaming"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = frozen("plain", tmp_path, seed=1).read_bytes()

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_written(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        full()

    if when == "writing":
        monkeypatch.setattr(Path, "write_bytes", half_written)
    else:
        monkeypatch.setattr(os, "fsync" if when == "syncing" else "replace", full)
    with pytest.raises(OSError, match="No space left"):
        frozen("plain", tmp_path, seed=2)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.unet"]
    assert (tmp_path / "plain.unet").read_bytes() == old


# -- reading ---------------------------------------------------------------------------------------------------------


def test_reading_bytes_and_path_is_the_same(tmp_path: Path) -> None:
    path = frozen("plain", tmp_path)
    assert read_document(path) == read(path.read_bytes()).document


def test_cut_and_flipped_files_are_refused_or_read_never_anything_else(tmp_path: Path) -> None:
    data = frozen("plain", tmp_path).read_bytes()
    random = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    damaged = [data[:length] for length in (0, 7, 8, 100, header - 1, header, len(data) - 1)]
    for position in random.integers(0, header, 300):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(random.integers(0, 8))
        damaged.append(bytes(flipped))
    refused = 0
    for contents in damaged:
        try:
            inspect(contents)
            _ = read(contents).golden
        except EngineFileError:
            refused += 1
    assert refused > len(damaged) // 3


def test_foreign_and_newer_files(tmp_path: Path) -> None:
    foreign = safetensors.numpy.save({"x": np.zeros(3, np.float32)})
    with pytest.raises(EngineFileError, match=r"without the metadata"):
        read(foreign)
    file = read(frozen("plain", tmp_path))
    newer = serialise({**file.document, "format_version": 2}, file.tensors)
    with pytest.raises(EngineFileError, match=r"format version 2, this package reads version 1; install a newer"):
        read(newer)
    lacking = {name: array for name, array in file.tensors.items() if name != "decoder1.conv0.bias"}
    with pytest.raises(EngineFileError, match=r"decoder1.conv0 \(up_conv\): has no tensor 'bias'"):
        _ = read(serialise(file.document, lacking)).graph


# -- inspect and verify ----------------------------------------------------------------------------------------------


def test_inspect_says_what_matters(engine_file: Callable[..., Path]) -> None:
    text = inspect(engine_file("relunet16"))
    lines = text.splitlines()
    assert lines[0].startswith("relunet16: engine file version 1 by unet_fast")
    assert "17  head     fused  decoder0.conv1    256 x 256 x 1" in text
    assert "5,624.6" in text
    assert "in 6 slots for one image of 256 x 256 (lower bound" in text
    assert "n >= 16, n % 16 == 0; margin 0 px; exact tiling: halo 96 px" in text
    plain = inspect(engine_file("odd"))
    assert "plain" in plain
    assert "3 x softmax" in plain
    assert "cannot be exact" in inspect(engine_file("bilinear_corners"))


@pytest.mark.parametrize("name", NAMES)
def test_inspect_reads_every_network(name: str, engine_file: Callable[..., Path]) -> None:
    assert name in inspect(engine_file(name))


class ReferenceEngine:
    """What `verify` needs of an engine, computed by the reference with an error put in."""

    device, precision = "reference", "float32"

    def __init__(self, path: Path, error: float) -> None:
        self.source = str(path)
        self.graph = read(path).graph
        self.error = error

    def probability(self, image: np.ndarray, *, tiling: str) -> np.ndarray:
        assert tiling == "none"
        result = reference.probability(self.graph, reference.to_unit(image[None]))[0] * (1 + self.error)
        return result[..., 0] if result.shape[-1] == 1 else result


@pytest.mark.parametrize("name", ["plain", "classes", "valid"])
def test_verify(name: str, engine_file: Callable[..., Path]) -> None:
    path = engine_file(name)
    good = verify(ReferenceEngine(path, 0))
    assert good.passed
    assert "passed: float32 on reference, tolerance 1e-05" in str(good)
    for error in (1e-4, np.nan):
        bad = verify(ReferenceEngine(path, error))
        assert not bad.passed
        assert "golden pair 1: relative error" in str(bad)
        assert "FAILED" in str(bad)


def test_verify_needs_golden_pairs(tmp_path: Path) -> None:
    path = frozen("plain", tmp_path)
    file = read(path)
    write(path, {**file.document, "golden": []}, file.tensors)
    with pytest.raises(EngineFileError, match="holds no golden pairs"):
        verify(ReferenceEngine(path, 0))
