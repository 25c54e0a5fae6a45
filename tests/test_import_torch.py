"""Checkpoints of milesial/Pytorch-UNet in every layout, against PyTorch; and pickles, which are never executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.importers.comparison import FIXTURES, assert_faithful
from tests.importers.make_fixtures import make_checkpoint
from tests.importers.torch_networks import LAYOUTS, Milesial
from unet_fast.importers import ModelFileError, Options, import_model, read_model


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, bilinear: bool, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "checkpoint", seed=20, layout=layout, bilinear=bilinear, classes=2)
    report = assert_faithful(path, path.with_suffix(".npz"), tmp_path)
    expected = {
        "2019-05": "until 2019-10",
        "2019-10": "from 2019-10",
        "2020-03": "from 2020-03",
        "2021-12": "from 2021-12",
    }
    assert (
        f"3 channels, 2 classes, {'bilinear' if bilinear else 'transposed'}, layout {expected[layout]}" in report.found
    )
    assert not report.plain


@pytest.mark.parametrize("name", ["until_2019", "carvana"])
def test_committed_files(name: str, tmp_path: Path) -> None:
    assert_faithful(FIXTURES / f"{name}.pth", FIXTURES / f"{name}.npz", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix": "module."},
        {"nested": "state_dict"},
        {"nested": "model_state_dict", "prefix": "module."},
        {"legacy": True},
    ],
)
def test_ways_of_saving(changes: dict[str, Any], tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "checkpoint", seed=21, layout="2021-12", **changes)
    assert_faithful(path, path.with_suffix(".npz"), tmp_path)


@pytest.mark.parametrize(
    ("classes", "mask_values", "palette"),
    [
        (2, [0, 255], ((0, 0, 0), (255, 255, 255))),
        (3, [[0, 0, 0], [200, 10, 0], [0, 90, 255]], ((0, 0, 0), (200, 10, 0), (0, 90, 255))),
        (1, [0, 128], ((128, 128, 128),)),
        (1, [0, 1], ()),  # the numbers of the classes are no colours
        (3, [0, 1, 2], ()),
        (2, [0, 70000], ()),
    ],
)
def test_mask_values_become_the_palette(classes: int, mask_values: Any, palette: Any, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "c", seed=22, layout="2021-12", classes=classes, mask_values=mask_values)
    assert read_model(path).palette == palette


def test_the_published_sizes() -> None:
    """31,037,698 parameters transposed and 17,263,042 bilinear, with 3 channels, 2 classes and 64 filters."""
    for bilinear, parameters in ((False, 31_037_698), (True, 17_263_042)):
        with torch.device("meta"):
            network = Milesial(3, 2, base=64, bilinear=bilinear)
        assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_a_safetensors_file_of_the_same_names(tmp_path: Path) -> None:
    state = torch.load(make_checkpoint(tmp_path, "c", seed=23, layout="2020-03"), weights_only=True)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({name: np.ascontiguousarray(value.numpy()) for name, value in state.items()}, path)
    assert_faithful(path, tmp_path / "c.npz", tmp_path)


def test_a_regression(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "c", seed=24, layout="2021-12")
    assert read_model(path, Options(result="identity")).graph.output == "identity"


# -- what is refused -------------------------------------------------------------------------------------------------


class _Trap:
    """Asks the unpickler to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickle_is_executed(legacy: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "model.pth"
    torch.save({"model": _Trap(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelFileError, match=r"a pickle with Python objects of posix\.mkdir besides tensors"):
        import_model(path, tmp_path / "model.unet")
    assert not trap.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pth"]


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 3), tmp_path / "model.pth")
    with pytest.raises(ModelFileError, match=r"save model\.state_dict"):
        read_model(tmp_path / "model.pth")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.trace(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8)).save(tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match="a TorchScript program"):
        read_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("up2.up.bias"), "lacks 'up2.up.bias'"),
        (
            lambda state: state.pop("inc.double_conv.0.weight"),
            r"a state dict with down1.*other networks come in through ONNX",
        ),
        (lambda state: state.update({"attention.weight": torch.zeros(1)}), "1 entries with no place.*attention.weight"),
        (lambda state: state.update({"outc.conv.weight": torch.zeros(2)}), "'outc.conv.weight' must have 4 axes"),
        (lambda state: state.update({"down1.maxpool_conv.1.double_conv.0.weight": torch.zeros(4, 3, 3, 3)}), "weight"),
    ],
)
def test_other_state_dicts_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "c", seed=25, layout="2021-12")
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(ModelFileError, match=message):
        read_model(path)


def test_tensors_alone_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="must hold a state dict, names and tensors, got list"):
        read_model(tmp_path / "list.pth")
