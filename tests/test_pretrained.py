"""The shipped network: its figures are those that its README states, and engines keep them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import shipped
from tests.conftest import ROOT
from train.checkpoint import load_network
from unet_fast import UnsupportedError, pretrained_engine
from unet_fast.pretrained import pretrained_weights


@pytest.mark.parametrize("name", shipped.SETS)
def test_figures_of_the_readme(shared_data: Path, name: str) -> None:
    """Machines round differently, which turns a few pixels of two million."""
    stated = load_network(pretrained_weights())[1]["figures"][f"{name}/test"]
    assert shipped.iou_in_pytorch(shared_data, name) == pytest.approx(stated["iou"], abs=5e-4)
    keys = ("images", "iou", "dice", "iou_per_image", "dice_per_image")
    cells = [str(stated[key]) if key == "images" else f"{stated[key]:.4f}" for key in keys]
    table = (ROOT / "pretrained" / "README.md").read_text()
    assert f"| `{name}` test | {' | '.join(cells)} |" in table
    assert f"{stated['iou']:.3f}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", shipped.SETS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_engine_keeps_the_accuracy(shared_data: Path, name: str, precision: str) -> None:
    """fp16 runs on a GPU only: tests/gpu."""
    try:
        engine = pretrained_engine(device="cpu", precision=precision)
    except UnsupportedError as reason:
        pytest.skip(str(reason))
    assert abs(shipped.lost_iou(engine, shared_data, name)) <= shipped.LOSS
