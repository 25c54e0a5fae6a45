"""What a file is, told by its contents, and the command `unet-fast import`."""

from __future__ import annotations

import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importers.comparison import FIXTURES
from tests.importers.make_fixtures import make_checkpoint
from unet_fast import Engine, UNetSpec, freeze
from unet_fast.cli import main
from unet_fast.importers import ModelFileError, read_model, recognise


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>", "a web page, so the download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
        (b"\x93NUMPY\x01\0", r"no model that is known here, it begins with b'\\x93NUMPY"),
        (b"PK\x03\x04" + bytes(40), "a damaged zip archive"),
    ],
)
def test_what_is_no_model(contents: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"  # the name does not matter
    path.write_bytes(contents)
    with pytest.raises(ModelFileError, match=rf"model\.onnx: {message}.*; accepted are ONNX, Keras"):
        recognise(path)


def test_archives_and_folders_that_are_no_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "none")
    with pytest.raises(ModelFileError, match=r"a zip archive with notes\.txt"):
        recognise(tmp_path / "a.zip")
    with pytest.raises(ModelFileError, match=r"a folder without rdf\.yaml"):
        recognise(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelFileError, match="a TensorFlow SavedModel; save the Keras model"):
        recognise(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "none.onnx")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)  # as if it were not installed
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        ModuleNotFoundError, match=r"reading a Keras file needs h5py .*pip install 'unet_fast\[import\]'"
    ):
        read_model(tmp_path / "a.h5")


def test_an_engine_file_and_a_checkpoint_of_ours(tmp_path: Path) -> None:
    from tests.networks import random_weights

    spec = UNetSpec(base_width=8, depth=2)
    engine = freeze((spec, random_weights(spec)), tmp_path / "a.unet")
    with pytest.raises(ModelFileError, match="an engine file already"):
        read_model(engine)


@pytest.mark.parametrize("name", ["keras2_nearest.h5", "keras3_nearest.keras", "nuclei.onnx", "carvana.pth"])
def test_a_damaged_file_is_an_error_at_worst(name: str, tmp_path: Path) -> None:
    pytest.importorskip({"h5": "h5py", "keras": "h5py", "onnx": "onnx", "pth": "torch"}[name.partition(".")[2]])
    random, contents = np.random.default_rng(60), (FIXTURES / name).read_bytes()
    refused = 0
    for trial in range(60):
        damaged = bytearray(contents)
        for position in random.integers(0, len(contents) if trial % 2 else 2000, 4):
            damaged[position] = random.integers(256)
        path = tmp_path / "damaged"
        path.write_bytes(damaged[: random.integers(len(contents))] if trial % 5 == 0 else damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_model(path)
            except ModelFileError:
                refused += 1
    assert refused >= 10  # a cut file always is; a weight may well be another


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_checkpoint(tmp_path, "cells", seed=50, layout="2021-12", classes=2, mask_values=[0, 255])
    assert run("import", source) == 0
    out = capsys.readouterr().out
    for line in (
        "found      a checkpoint of milesial/Pytorch-UNet: 3 channels, 2 classes, transposed, layout from 2021-12",
        "note       it ends in raw values: read as the logits of a softmax",
        "runs       18 ops, 18 of them fused",
        "checked    the network as it was read, in float64: relative error",
        "precision  fp16: relative error",
        f"written    {tmp_path / 'cells.unet'}",
    ):
        assert line in out
    info = Engine(tmp_path / "cells.unet").info
    assert (info.name, info.channels, info.classes, info.output) == ("cells", 3, 2, "softmax")
    assert info.palette == ((0, 0, 0), (255, 255, 255))


def test_the_options_reach_the_engine(tmp_path: Path) -> None:
    source, path = make_checkpoint(tmp_path, "c", seed=51, layout="2021-12"), tmp_path / "a.unet"
    options = ("--precision", "float32", "--name", "worms", "--tile", 64, "--threshold", 0.3)
    scaling = ("--white", 255, "--mean", "51,102,0", "--std", 51)
    assert run("import", source, "-o", path, *options, *scaling) == 0
    info = Engine(path).info
    assert (info.name, info.tile, info.threshold) == ("worms", 64, pytest.approx(0.3))
    rule = Engine(path)  # (255 v - 51) / 51 of a grey of 51 / 255 is 0 in the first channel
    with np.load(tmp_path / "c.npz") as pair:
        image, truth = pair["image"][0], pair["result"][0, ..., 0]
    pixels = (image * 51 + np.array([51, 102, 0], np.float32)) / 255
    assert rule.probability(pixels.astype(np.float32), tiling="none") == pytest.approx(truth, abs=1e-4)
    assert run("import", source, "-o", path, "--standardise", "--result", "identity") == 0
    assert Engine(path).info.output == "identity"


def test_standardising_leaves_nothing_to_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--mean", "--std", "--white"):
        assert run("import", tmp_path / "a.onnx", "--standardise", option, 1) == 1
        assert f"{option} does not go with --standardise" in capsys.readouterr().err


def test_numbers_for_other_channels_are_not_the_fault_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_checkpoint(tmp_path, "c", seed=51, layout="2021-12")
    assert run("import", source, "--mean", "0.1,0.2") == 1
    error = capsys.readouterr().err
    assert "normalisation needs 1 or 3 numbers, got 2 of mean and std, the image has 3 channels" in error
    assert "description" not in error


def test_the_folder_is_made(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path, "c", seed=51, layout="2021-12")
    assert run("import", source, "-o", tmp_path / "new" / "a.unet") == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.unet"]


def test_failure_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_bytes(b"<html></html>")
    assert run("import", tmp_path / "a.onnx") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"unet-fast: {tmp_path / 'a.onnx'}: a web page")
    assert "\n" not in error
    assert not (tmp_path / "a.unet").exists()
